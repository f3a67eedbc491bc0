"""From the ids that the model wrote back to a message.

What it does: reads the two built-in forms of a tool call, `<call> name value value` (compact, word-level) and
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Qwen's). What it does not do: judge the call; a tool that does
not exist or an argument that is missing is for the world to answer. Ids are not tokenised again, so a call that cannot be read
only becomes content, and the episode's tokens stay what the model wrote.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..worlds.protocol import Message
from .template import call_arguments
from .tokenizers import ChatTokenizer


def parse(tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> Message:
    """The assistant's message. Its content is always a string; `tool_calls` is there only if every call could be read."""
    written = list(ids)
    if written and written[-1] == tokenizer.end_of_turn_id:
        written.pop()
    call_ids = tokenizer.call_ids
    if not call_ids or call_ids[0] not in written:
        return {"role": "assistant", "content": tokenizer.decode(written)}
    content, *calls = _split(written, call_ids[0])
    read = (_read_compact(tokenizer, tools, call) if len(call_ids) == 1 else _read_json(tokenizer, call) for call in calls)
    functions: list[dict[str, str]] = []
    for function in read:
        if function is None:
            return {"role": "assistant", "content": tokenizer.decode(written)}
        functions.append(function)
    tool_calls = [{"id": f"call_{number}", "type": "function", "function": function} for number, function in enumerate(functions)]
    return {"role": "assistant", "content": tokenizer.decode(content).strip(), "tool_calls": tool_calls}


def positional_values(function: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A call whose arguments stand in the order of the tool's parameters, as the compact form writes them.

    Raises:
        ValueError: an argument before the last given one is missing, or a value is an object: without names it could not be read.
    """
    arguments = dict(call_arguments(function["arguments"]))
    parameters = _parameters(tools, function["name"])
    if parameters is not None:
        names = [name for name in parameters if name in arguments]
        if len(names) != len(arguments) or names != list(parameters)[: len(names)]:
            raise ValueError(f"call of {function['name']} gives {sorted(arguments)}; the tool's parameters are {list(parameters)}")
        arguments = {name: arguments[name] for name in names}
    if any(isinstance(value, Mapping) for value in arguments.values()):
        raise ValueError(f"call of {function['name']} has an object as argument, which the compact form cannot write")
    return {"name": function["name"], "arguments": arguments}


def _split(ids: Sequence[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == mark:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _read_compact(tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> dict[str, str] | None:
    words = tokenizer.decode(list(ids)).split()
    if not words:
        return None
    name, *values = words
    parameters = _parameters(tools, name)
    arguments = {} if parameters is None else _zip(parameters, values)
    return {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def _read_json(tokenizer: ChatTokenizer, ids: Sequence[int]) -> dict[str, str] | None:
    body, *rest = _split(ids, tokenizer.call_ids[1])
    if len(rest) != 1 or tokenizer.decode(rest[0]).strip():  # unclosed, closed twice, or followed by more text
        return None
    try:
        call = json.loads(tokenizer.decode(body), parse_constant=_refuse_constant)
        name, arguments = call["name"], call.get("arguments", {})
        # A lone surrogate (half of an escaped pair) is a string that no file and no tokenizer takes.
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode().decode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict) or not name.isprintable():
        return None
    return {"name": name, "arguments": text}


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _parameters(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Mapping[str, Any]] | None:
    """The parameters of a tool by name, in order; None where there is no such tool."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            return function.get("parameters", {}).get("properties", {})
    return None


def _zip(parameters: Mapping[str, Mapping[str, Any]], values: list[str]) -> dict[str, Any]:
    """Give values to parameters in order. A last one that is an array or a text takes the rest.

    Too many values give no arguments at all, too few leave the last ones out, so that the world says what is wrong.
    """
    names = list(parameters)
    if not names:
        return {}
    last = parameters[names[-1]]
    arguments: dict[str, Any] = {}
    for name, value in zip(names[:-1], values, strict=False):
        arguments[name] = _typed(parameters[name], value)
    rest = values[len(names) - 1 :]
    if last.get("type") == "array":
        if len(values) >= len(names) - 1:
            arguments[names[-1]] = [_typed(last.get("items", {}), value) for value in rest]
    elif last.get("type", "string") == "string":
        if rest:
            arguments[names[-1]] = " ".join(rest)
    elif len(rest) > 1:
        return {}
    elif rest:
        arguments[names[-1]] = _typed(last, rest[0])
    return arguments


def _typed(parameter: Mapping[str, Any], word: str) -> Any:
    """A word as its parameter's type; a word that is not of the type stays a word."""
    kind = parameter.get("type")
    try:
        if kind == "integer":
            return int(word)
        if kind == "number":
            number = float(word)
            return int(number) if number.is_integer() and "." not in word else number if number - number == 0 else word
    except (ValueError, OverflowError):
        return word
    return {"true": True, "false": False}.get(word, word) if kind == "boolean" else word
