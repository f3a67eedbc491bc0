"""export: the final student as Hugging Face folders, one per number format, ready for `transformers` or vLLM.

What it does: casts weight file by weight file, so that memory holds one file at a time, and adds config, tokenizer and a model
card. What it does not do: rename or merge weights; the student's folder is in Hugging Face's form already.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ...compiler.plan import Plan
from ..files import published_folder, write_json
from ..jobs import JobContext
from .import_model import INDEX, count_parameters, weight_files

INHERITED = {
    "distill": "domain teachers, routed on-policy distillation with salient vocabulary alignment",
    "merge": "domain teachers, their weights merged",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def run(context: JobContext) -> None:
    """Publish every format that the spec names. The first rank works alone."""
    result: dict[str, Any] = {}
    if context.is_first_rank:
        student = context.input_folder("model")
        parameters = count_parameters(student)
        formats: list[str] = context.job.settings["formats"]
        for number, form in enumerate(formats):
            context.progress(number, len(formats), "formats")
            with published_folder(context.folder / form) as staging:
                export_model(student, staging, form)
                card = model_card(context.plan, context.job.settings["model"], parameters, form)
                (staging / "README.md").write_text(card, encoding="utf-8")
        context.progress(len(formats), len(formats), "formats")
        result = {"formats": formats, "parameters": parameters}
    context.finish(result)


def export_model(model: Path, folder: Path, form: str) -> None:
    """Write a model folder in another number format (`float32` or `bfloat16`)."""
    import torch

    dtype: torch.dtype = getattr(torch, form)
    total = 0
    for name in weight_files(model):
        tensors = {
            key: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
            for key, tensor in load_file(model / name).items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    if (model / INDEX).is_file():
        index = json.loads((model / INDEX).read_text())
        write_json(folder / INDEX, {**index, "metadata": {**index.get("metadata", {}), "total_size": total}})
    config = json.loads((model / "config.json").read_text())
    config.pop("torch_dtype", None)  # the older name of `dtype`
    write_json(folder / "config.json", {**config, "dtype": form})
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)


def model_card(plan: Plan, model: dict[str, Any], parameters: int, form: str) -> str:
    """The README of an exported model."""
    kinds = {job.kind for job in plan.jobs}
    stages = ["full-domain SFT", *(how for kind, how in INHERITED.items() if kind in kinds)]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {plan.name}

A mixture-of-experts student ({parameters:,} parameters, {form}) made by Polymath: {", ".join(stages)}.

- family: `{model["family"]}`
- base: `{model["checkpoint"]}`
- recipe digest: `{plan.recipe_digest}`

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""
