"""The benchmark's function documents as OpenAI function schemas, and its calls as written in Python."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ..rows import FunctionCall

TYPES = {"dict": "object", "float": "number", "tuple": "array", "String": "string", "any": None}


def function_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """A function document as a tool: its types in JSON Schema's words, its invented defaults of "None" left out."""
    parameters = json_schema(document["parameters"])
    function = {"name": document["name"], "description": document.get("description", ""), "parameters": parameters}
    return {"type": "function", "function": function}


def json_schema(node: Any) -> Any:
    """A parameter's description with JSON Schema's type names."""
    if isinstance(node, list):
        return [json_schema(one) for one in node]
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key == "type" and isinstance(value, str):
            kind = TYPES.get(value, value)
            if kind is not None:
                found["type"] = kind
        elif key == "properties" and isinstance(value, dict):
            found[key] = {name: json_schema(one) for name, one in value.items()}
        elif key == "items":
            found[key] = json_schema(value)
        elif not (key == "default" and value == "None"):
            found[key] = value
    return found


def python_call(text: str, parameters: Mapping[str, Sequence[str]]) -> FunctionCall:
    """A call as the reference answers write it, such as `cd(folder='a')`. Nothing is evaluated but literals.

    Args:
        parameters: the parameters of every function, in order, for arguments by position.

    Raises:
        ValueError: not a call of a known function with literal arguments.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not a call") from error
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in parameters:
        raise ValueError(f"{text!r} is not a call of a function that is documented")
    positional = dict(zip(parameters[node.func.id], map(ast.literal_eval, node.args), strict=False))
    named = {one.arg: ast.literal_eval(one.value) for one in node.keywords if one.arg is not None}
    if len(positional) + len(named) != len(node.args) + len(node.keywords) or set(positional) & set(named):
        raise ValueError(f"{text!r} gives an argument twice, or too many")
    return FunctionCall(node.func.id, {**positional, **named})
