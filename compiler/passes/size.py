"""size: the model gets its dimensions, from `shape`, `size` or the checkpoint's config.json, or the reason why it has none."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from ...specs.build import Problem
from ...specs.families import SIZES, Dimensions, dimensions_of, of_config
from ...specs.locations import is_url, local_path
from ...specs.model import Model
from ..compilation import Compilation, mistake

CONFIG = "config.json"
NOT_COMPARED = ("context_tokens", "rope_theta", "vision")  # a size is still itself with a longer context, or without its eyes


def size(compilation: Compilation) -> Compilation:
    """Find the dimensions; where several places state them, they must agree."""
    spec = compilation.spec
    if spec is None:
        return compilation
    model = spec.model
    mistakes = list(_check_statements(model))
    config, fault = _read_config(model, compilation.root)
    dimensions = None
    if fault is not None:
        mistakes.append(fault)
    elif config is not None:
        try:
            dimensions = of_config(model.family, config)
        except ValueError as error:
            fix = f"write `family: {config['model_type']}`" if config.get("model_type") in SIZES else "name another checkpoint"
            detail = f"{CONFIG} of this checkpoint: {error}"
            mistakes.append(mistake("E0330", ("model", "checkpoint"), detail, fix))
        else:
            mistakes += _check_agreement(model, dimensions)
    elif not mistakes:
        dimensions = dimensions_of(model)
    return replace(compilation, dimensions=dimensions).with_mistakes(*mistakes)


def _check_statements(model: Model) -> Iterator[Problem]:
    """Whether the spec says how large the model is, and says it once."""
    random, sizes = model.checkpoint == "random", SIZES[model.family]
    known = " or ".join(f"`size: {name}`" for name in sizes)
    if random and model.shape is None and model.size is None:
        yield mistake("E0304", ("model",), "nothing says how large the random model is", f"add `shape`, or {known}", at_key=True)
    if model.shape is not None and not random:
        detail = "the checkpoint decides the shape"
        yield mistake("E0304", ("model", "shape"), detail, "remove this, or write `checkpoint: random`", at_key=True)
    elif model.shape is not None and model.size is not None:
        yield mistake(
            "E0304", ("model", "size"), "`shape` already says how large the model is", "remove one of the two", at_key=True
        )
    elif model.shape is not None and (model.shape.hybrid is None) != (model.family == "qwen3_moe"):
        detail, fix = f"`{model.family}` has no such layers", "remove it, or write `family: qwen3_5_moe`"
        if model.shape.hybrid is None:
            detail, fix = f"the layers of `{model.family}` are described in `hybrid`", f"add `hybrid`, or write {known} instead"
        yield mistake("E0304", ("model", "shape", *(("hybrid",) if model.shape.hybrid else ())), detail, fix, at_key=True)
    if model.size is not None and model.size not in sizes:
        yield mistake("E0330", ("model", "size"), f"`{model.family}` has no such size", f"write {known}, or another `family`")


def _read_config(model: Model, root: Path) -> tuple[Mapping[str, Any] | None, Problem | None]:
    """The checkpoint's config.json, where it lies on this machine."""
    folder = local_path(model.checkpoint, root) if model.checkpoint != "random" else None
    path = None if folder is None else folder / CONFIG
    try:
        if path is not None and path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(config, dict):
                return cast(dict[str, Any], config), None
            raise ValueError("it does not hold a JSON object")
        folder_is_there = folder is not None and any(folder.glob("*.safetensors"))
    except (OSError, ValueError) as error:
        fix = "copy it from where the weights came from"
        return None, mistake("E0312", ("model", "checkpoint"), f"{model.checkpoint}/{CONFIG} cannot be read: {error}", fix)
    is_stated = model.checkpoint == "random" or model.size is not None or model.shape is not None
    if is_stated or not (folder_is_there or is_url(model.checkpoint)):
        return None, None  # a folder that is missing or holds no weights is another mistake
    what = f"the folder has no {CONFIG}" if folder_is_there else f"its {CONFIG} is not on this machine"
    fix = f"add {' or '.join(f'`size: {name}`' for name in SIZES[model.family])}"
    return None, mistake("E0304", ("model", "checkpoint"), f"nothing says how large this model is: {what}", fix)


def _check_agreement(model: Model, read: Dimensions) -> Iterator[Problem]:
    named = SIZES[model.family].get(model.size) if model.size is not None else None
    if named is None:
        return
    names = [field.name for field in fields(Dimensions) if field.name not in NOT_COMPARED]
    for name in names:
        if getattr(named, name) != getattr(read, name):
            detail = f"`{name}` of this size is {getattr(named, name)}; the checkpoint's {CONFIG} says {getattr(read, name)}"
            yield mistake("E0330", ("model", "size"), detail, "remove `size`: the checkpoint says how large it is")
            return
