"""What this package calls of Transformer Engine exists in the published version, with the parameters that it is called with.

The published wheel holds Python sources, but cannot be imported without a GPU. It is downloaded (1.2 MiB), read and never imported:
the calls are taken from our own sources and bound to the signatures in theirs. A new version is tried by raising the pin in
pyproject.toml.
"""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from polymath.compiler.experts import RECIPES
from polymath.te_kernels.recipe import INSTALL

ROOT = Path(__file__).parents[3]
PINNED = next(
    re.search(r"==([\d.]+)", one).group(1)  # type: ignore[union-attr]
    for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["te"]
)
PYTORCH = "transformer_engine/pytorch"
RECIPE = "transformer_engine/common/recipe/__init__.py"
# What our sources call a module of theirs, and where it lies. Names of `pytorch` are followed through its `__init__`.
MODULES = {
    "pytorch": f"{PYTORCH}/__init__.py",
    "gemm": f"{PYTORCH}/cpp_extensions/gemm.py",
    "quantization": f"{PYTORCH}/quantization.py",
}
COMPILED = "extension"  # its signatures are not in the wheel: their own calls are what ours is compared with
STORAGES = {"Float8BlockwiseQTensorStorage": "float8_blockwise", "Float8TensorStorage": "float8", "MXFP8TensorStorage": "mxfp8"}
ATTENTION = {"fp8_dpa", "fp8_mha"}  # arguments of recipes that no expert layer reads
OURS = [ROOT / "te_kernels" / name for name in ("recipe.py", "grouped.py", "permute.py")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ast.Module]:
    """The modules of the published wheel, by their path in it."""
    folder = tmp_path_factory.mktemp("wheel")
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--timeout",
        "20",
        "--retries",
        "1",
        "--dest",
        folder,
    ]
    finished = subprocess.run([*download, f"transformer-engine=={PINNED}"], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"transformer-engine {PINNED} cannot be downloaded here: {finished.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("transformer_engine/") and name.endswith(".py")]
        return {name: ast.parse(wheel.read(name)) for name in names}


def definition(tree: ast.Module, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name), None)


def find(sources: Mapping[str, ast.Module], path: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """A definition, through the imports that lead to it."""
    tree = sources[path]
    found = definition(tree, name)
    if found is not None:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            package = path.rpartition("/")[0].split("/")
            base = package[: len(package) - node.level + 1] if node.level else []
            module = "/".join([*base, *(node.module or "").split(".")])
            for candidate in (f"{module}.py", f"{module}/__init__.py"):
                if candidate in sources:
                    return find(sources, candidate, name)
    raise AssertionError(f"{path} has no {name}")


def method(of: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(node for node in of.body if isinstance(node, ast.FunctionDef) and node.name == name)


def signature(function: ast.FunctionDef, *, bound: bool = False) -> inspect.Signature:
    """The parameters of a definition, with a mark for a default."""
    one = function.args
    kinds = [(arg, inspect.Parameter.POSITIONAL_OR_KEYWORD) for arg in (*one.posonlyargs, *one.args)]
    defaults = [inspect.Parameter.empty] * (len(kinds) - len(one.defaults)) + [None] * len(one.defaults)
    parameters = [inspect.Parameter(arg.arg, kind, default=default) for (arg, kind), default in zip(kinds, defaults, strict=True)]
    if one.vararg:
        parameters.append(inspect.Parameter(one.vararg.arg, inspect.Parameter.VAR_POSITIONAL))
    for arg, value in zip(one.kwonlyargs, one.kw_defaults, strict=True):
        default = inspect.Parameter.empty if value is None else None
        parameters.append(inspect.Parameter(arg.arg, inspect.Parameter.KEYWORD_ONLY, default=default))
    if one.kwarg:
        parameters.append(inspect.Parameter(one.kwarg.arg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters[1:] if bound else parameters)


def our_calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of ours into Transformer Engine: what we call its module, the name in it, and the call."""
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            holder = node.func.value
            module = holder.id if isinstance(holder, ast.Name) else holder.attr if isinstance(holder, ast.Attribute) else None
            if module in MODULES or module == COMPILED:
                yield str(module), node.func.attr, node


CALLS = list(our_calls())


def test_the_calls_are_found() -> None:
    assert {name for _, name, _ in CALLS} >= {
        "autocast",
        "Float8BlockQuantizer",
        "general_grouped_gemm",
        "split_quantize",
        "moe_unpermute",
    }


@pytest.mark.parametrize(("module", "name", "call"), CALLS, ids=[f"{module}.{name}" for module, name, _ in CALLS])
def test_what_we_call_exists_and_takes_what_we_give_it(
    sources: Mapping[str, ast.Module], module: str, name: str, call: ast.Call
) -> None:
    keywords = {keyword.arg for keyword in call.keywords}
    assert None not in keywords, "a call with **arguments hides what it passes"
    if module == COMPILED:
        theirs = [
            (len(node.args), {keyword.arg for keyword in node.keywords})
            for tree in sources.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
        ]
        assert any(len(call.args) == positional and keywords <= named for positional, named in theirs), f"{name}: {theirs}"
        return
    found = find(sources, MODULES[module], name)
    if isinstance(found, ast.ClassDef):
        constructors = [one for one in found.body if isinstance(one, ast.FunctionDef) and one.name in ("__init__", "__new__")]
        theirs_signature = signature(constructors[0], bound=True)
    else:
        theirs_signature = signature(found)
    starred = any(isinstance(arg, ast.Starred) for arg in call.args)
    positional = [None] * (0 if starred else len(call.args))
    theirs_signature.bind(*positional, **dict.fromkeys(map(str, keywords)))


@pytest.mark.parametrize("format", RECIPES)
def test_the_arguments_of_a_recipe_are_exactly_its_fields(sources: Mapping[str, ast.Module], format: str) -> None:
    name, arguments = RECIPES[format]
    found = find(sources, RECIPE, name)
    fields = {one.target.id for one in found.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    unstated = ATTENTION | {"scaling_factor_compute_algo"}  # a function, that a plan cannot hold; None is the rule of the reference
    assert fields - unstated == set(arguments), "a field that we do not state may take its value from the environment"
    members = {target.id for one in find(sources, RECIPE, "Format").body if isinstance(one, ast.Assign) for target in one.targets}  # type: ignore[attr-defined]
    assert arguments["fp8_format"] in members
    products = {one.target.id for one in find(sources, RECIPE, "MMParams").body if isinstance(one, ast.AnnAssign)}  # type: ignore[attr-defined]
    for argument, value in arguments.items():
        if argument.startswith("fp8_gemm_"):
            assert set(value) == products


@pytest.mark.parametrize("storage", STORAGES)
def test_storages_have_the_methods_that_we_use(sources: Mapping[str, ast.Module], storage: str) -> None:
    found = find(sources, f"{PYTORCH}/tensor/storage/{STORAGES[storage]}_tensor_storage.py", storage)
    assert isinstance(found, ast.ClassDef)
    signature(method(found, "update_usage"), bound=True).bind(rowwise_usage=False, columnwise_usage=True)
    for name in ("size", "prepare_for_saving", "restore_from_saved"):
        assert method(found, name)
    assert method(found, "device").decorator_list


def test_quantizers_have_the_attributes_that_we_set(sources: Mapping[str, ast.Module]) -> None:
    quantizer = find(sources, f"{PYTORCH}/quantized_tensor.py", "Quantizer")
    declared = {one.target.id for one in quantizer.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    assert {"internal", "optimize_for_gemm"} <= declared
    formats = find(sources, f"{PYTORCH}/constants.py", "DType")
    members = {target.id for one in formats.body if isinstance(one, ast.Assign) for target in one.targets}  # type: ignore[attr-defined]
    assert {"kFloat8E4M3", "kFloat8E5M2"} <= members


def test_alignments_and_defaults_are_those_that_we_assume(sources: Mapping[str, ast.Module]) -> None:
    align = find(sources, MODULES["quantization"], "get_align_size_for_quantization")
    constants = [
        node.value.value for node in ast.walk(align) if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant)
    ]
    assert sorted(constants) == [16, 32, 128]  # 32 of MXFP8, 128 of NVFP4, 16 of all others
    accumulators = {
        target.id: node.value.value
        for node in sources[f"{PYTORCH}/module/base.py"].body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("_2X_ACC_")
    }
    assert accumulators == {"_2X_ACC_FPROP": False, "_2X_ACC_DGRAD": True, "_2X_ACC_WGRAD": True}


def test_the_machines_that_we_refuse_are_those_that_transformer_engine_refuses(sources: Mapping[str, ast.Module]) -> None:
    def numbers(name: str) -> set[object]:
        found = ast.walk(find(sources, MODULES["quantization"], name))
        return {ast.literal_eval(node) for node in found if isinstance(node, (ast.Constant, ast.Tuple)) and _is_number(node)}

    assert {(9, 0), 12.9} <= numbers("_compute_fp8_block_scaling_support")
    assert {(8, 9), (9, 0)} <= numbers("_compute_fp8_support")
    assert {(10, 0), (12, 0)} <= numbers("_compute_mxfp8_support")


def _is_number(node: ast.AST) -> bool:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return all(isinstance(part, ast.Constant) and isinstance(part.value, (int, float)) for part in parts)


def test_one_version_is_pinned_everywhere() -> None:
    assert INSTALL.endswith(f"=={PINNED}'")
