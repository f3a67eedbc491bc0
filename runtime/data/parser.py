"""From the ids that the model wrote back to a message.

What it does: reads tool calls, in the form that the tokenizer's files decide (`ChatTokenizer.call_form`):

    template   whatever transformers' own parser reads by the tokenizer's `response_template`
    json       <tool_call>{"name": ..., "arguments": {...}}</tool_call>                                        Qwen3
    xml        <tool_call><function=name><parameter=key>value</parameter></function></tool_call>               Qwen3.5
    compact    <call> name value value                                                                         word-level

What it does not do: judge the call; a tool that does not exist or an argument that is missing is for the world to answer. Ids are
not tokenised again, so the episode's tokens stay what the model wrote, whatever is read in them. A call that cannot be read is a
call all the same, with no name and what was written as its arguments: the world answers that it cannot be read, and the episode
goes on.

`tests/conformance/test_tool_calls.py` holds json and xml against vLLM's `hermes` and `qwen3_coder`, and lists where they differ.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..worlds.protocol import Message
from .template import call_arguments
from .template_process import TEMPLATES, TemplateFailed
from .tokenizers import ChatTokenizer

FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>\s*", re.DOTALL)
TYPES = ("null", "integer", "number", "boolean", "object", "array", "string")  # in the order in which they are tried

Function = dict[str, str]


def parse(tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> Message:
    """The assistant's message. Its content is always a string; `tool_calls` is there only if there are any, readable or not."""
    written = list(ids)
    if written and written[-1] == tokenizer.end_of_turn_id:
        written.pop()
    if tokenizer.call_form == "template":
        return _read_by_template(tokenizer, tools, written)
    thought, said = _think(tokenizer, written)
    message = _read_said(tokenizer, tools, said)
    if thought is None:
        return message
    reasoning = tokenizer.decode(thought).strip("\n")
    return message | {"content": message["content"].lstrip("\n")} | ({"reasoning_content": reasoning} if reasoning else {})


def _think(tokenizer: ChatTokenizer, ids: list[int]) -> tuple[list[int] | None, list[int]]:
    """What the model thought, None where it did not, and what it said."""
    is_thinking = tokenizer.opens_thinking
    if not is_thinking and not (tokenizer.think_ids and tokenizer.think_ids[0] in ids):
        return None, ids
    begin, end = tokenizer.think_ids
    thought, said = list[int](), list[int]()
    for token in ids:
        if token == (end if is_thinking else begin):
            is_thinking = not is_thinking
        else:
            (thought if is_thinking else said).append(token)
    return thought, said


def _read_said(tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], ids: list[int]) -> Message:
    call_ids = tokenizer.call_ids
    if not call_ids or call_ids[0] not in ids:
        return {"role": "assistant", "content": tokenizer.decode(ids)}
    before, *calls = _split(ids, call_ids[0])
    texts, functions = [before], list[Function]()
    for call in calls:
        body, *after = _split(call, call_ids[1]) if len(call_ids) == 2 else [call]
        text = tokenizer.decode(body)
        functions.append(_read(tokenizer, tools, text) or _unreadable(text))
        texts += after
    return _message("".join(map(tokenizer.decode, texts)), functions)


def _message(content: str, functions: Sequence[Function]) -> Message:
    if not functions:
        return {"role": "assistant", "content": content}
    tool_calls = [{"id": f"call_{number}", "type": "function", "function": function} for number, function in enumerate(functions)]
    return {"role": "assistant", "content": content.strip(), "tool_calls": tool_calls}


def _read(tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], text: str) -> Function | None:
    if tokenizer.call_form == "compact":
        return _read_compact(tools, text)
    return _read_xml(tools, text) if tokenizer.call_form == "xml" else _read_json(text)


def _read_by_template(tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]], ids: list[int]) -> Message:
    text = tokenizer.decode(ids)
    template, prefix = tokenizer.hf.response_template, tokenizer.generation_prompt
    try:
        found = json.loads(TEMPLATES.run("read", template=template, text=text, prefix=prefix, tools=list(tools)))
        calls = [_function(one["function"]["name"], one["function"]["arguments"]) for one in found.get("tool_calls") or ()]
    except (TemplateFailed, AttributeError, LookupError, TypeError):  # not read, or read as something of another form
        is_call = not {*tokenizer.call_ids}.isdisjoint(ids)
        return _message("", [_unreadable(text)]) if is_call else {"role": "assistant", "content": text}
    message = _message(str(found.get("content") or ""), [one or _unreadable(text) for one in calls])
    return message | ({"reasoning_content": str(found["thinking"])} if found.get("thinking") else {})


def _unreadable(text: str) -> Function:
    """A call that no world can carry out: no tool is without a name."""
    return {"name": "", "arguments": text}


def _function(name: Any, arguments: Any) -> Function | None:
    """A call that was read; None where it is none: its arguments are no object, or could not be written down again."""
    try:
        # A lone surrogate (half of an escaped pair) is a string that no file and no tokenizer takes.
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode().decode()
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict) or not name or not name.isprintable():
        return None
    return {"name": name, "arguments": text}


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


def _read_compact(tools: Sequence[Mapping[str, Any]], text: str) -> Function | None:
    words = text.split()
    if not words:
        return None
    name, *values = words
    parameters = _parameters(tools, name)
    return _function(name, {} if parameters is None else _zip(parameters, values))


def _read_json(text: str) -> Function | None:
    try:
        call = json.loads(text, parse_constant=_refuse_constant)
        return _function(call["name"], call["arguments"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _read_xml(tools: Sequence[Mapping[str, Any]], text: str) -> Function | None:
    """Values are text, with a newline around each; which of them are numbers, lists and so on, the tool's parameters say."""
    found = FUNCTION.fullmatch(text)
    if found is None:
        return None
    name, body = found[1].strip(), found[2].rstrip()
    parameters = _parameters(tools, name) or {}
    arguments: dict[str, Any] = {}
    end = 0
    while end < len(body):
        parameter = PARAMETER.match(body, end)
        if parameter is None or "<parameter=" in parameter[2]:  # the next one begins before this one ends
            return None
        key, value = parameter.groups()
        arguments[key] = _typed(parameters.get(key, {}), value.removeprefix("\n").removesuffix("\n"))
        end = parameter.end()
    return _function(name, arguments)


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
    elif "string" in _types(last):
        if rest:
            arguments[names[-1]] = " ".join(rest)
    elif len(rest) > 1:
        return {}
    elif rest:
        arguments[names[-1]] = _typed(last, rest[0])
    return arguments


def _typed(parameter: Any, text: str) -> Any:
    """A text as its parameter's type; a text that is not of the type stays a text."""
    types = _types(parameter)
    for kind in TYPES:
        if kind in types:
            try:
                return _as_type(kind, text)
            except (KeyError, ValueError, OverflowError, RecursionError):
                pass
    return text


def _types(parameter: Any) -> set[str]:
    """The JSON types that a schema allows; text where it says nothing."""
    if not isinstance(parameter, Mapping):
        return {"string"}
    named = parameter.get("type", ())
    several = named if isinstance(named, list) else [named]
    types = {one for one in several if isinstance(one, str)}
    for union in ("anyOf", "oneOf", "allOf"):
        choices = parameter.get(union)
        for choice in choices if isinstance(choices, list) else ():
            types |= _types(choice)
    return types or {"string"}


def _as_type(kind: str, text: str) -> Any:
    """Raises ValueError or KeyError where the text is not of the type."""
    if kind == "string":
        return text
    if kind == "integer":
        return int(text)
    if kind == "number":
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("not a number of JSON")
        return int(number) if number.is_integer() else number
    if kind in ("object", "array"):
        value = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(value, dict if kind == "object" else list):
            raise ValueError(f"no {kind}")
        return value
    return {"null": {"null": None}, "boolean": {"true": True, "1": True, "false": False, "0": False}}[kind][text.strip().lower()]
