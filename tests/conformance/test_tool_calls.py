"""Our readers of tool calls against vLLM's own, on generated calls, well-formed and broken: the same calls, or a listed difference.

`make test-vllm` runs it: it needs vLLM's parsers, and no server and no model.
"""

import importlib.util
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from polymath.runtime.data.build_tokenizers import build_bytes
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, ChatTokenizer

CASES = 1500
Calls = list[tuple[str, Any]]
XML_CALL = (  # as the templates of Qwen3.5 write it
    r'{{- "<tool_call>\n<function=" + call.function.name + ">\n" }}'
    "{%- for key, value in call.function.arguments.items() %}"
    r'{{- "<parameter=" + key + ">\n" }}{{- value if value is string else value | tojson }}{{- "\n</parameter>\n" }}'
    "{%- endfor %}"
    r'{{- "</function>\n</tool_call>" }}'
)
PARAMETERS: dict[str, dict[str, Any]] = {
    "search": {"query": {"type": "string"}, "limit": {"type": "integer"}},
    "sum": {"values": {"type": "array", "items": {"type": "number"}}, "exact": {"type": "boolean"}},
    "set": {"place": {"type": "object"}, "share": {"type": "number"}, "note": {"type": ["string", "null"]}},
    "stop": {},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": properties}}}
    for name, properties in PARAMETERS.items()
]
TEXTS = ("a", "", "two words", 'say "hi"\n', "{}", "1", "null", "é\U0001f600", " spaced ", "<b>", "a </parameter", "\\", "0.50")
PIECES = ("<tool_call>", "</tool_call>", "{", "}", '"', ",", ":", "\n", " and ", "NaN", "[1]", "<function=sum>", "</function>",
          "<parameter=limit>", "</parameter>", "name", "arguments", "<think>", "\\", "3.5")  # fmt: skip

SWAPS = (
    (r": [0-9]+\b", ": NaN"),
    (r'"arguments": \{[^{}]*\}', '"arguments": [1]'),
    (r"\n[0-9]+\n", "\n3.5\n"),
)

# Where the two differ, on purpose; every difference of the corpus is one of these, and each of them occurs.
JSON_DIFFERENCES = {
    "refused": "vLLM takes a call that it cannot read, and all beside it, for the answer; here the world says that it is none",
    "no object": "vLLM passes arguments on that are no object, or no JSON (NaN); no world could take them",
    "mark inside": "the token `<tool_call>` inside of a call: here a call begins at each, in vLLM it is a part of the first's JSON",
}
XML_DIFFERENCES = {
    "guessed": "vLLM completes markup that is not whole, and leaves out text between its marks; here the call cannot be read",
    "unmarked": "vLLM takes `<function=` for a call without `<tool_call>` before it; here it is text, as whoever typed it meant",
    "later end": "a value that holds `</function>`: vLLM ends the call at the first, here it ends at the last",
    "untyped": "a value that is not of its parameter's type: vLLM takes it for any other JSON that it is, here it stays text",
}


def _tokenizer(form: str) -> ChatTokenizer:
    hf = build_bytes()
    hf.chat_template = (BUILTIN_FOLDERS["builtin:bytes"] / "chat_template.jinja").read_text()
    if form == "xml":
        start = hf.chat_template.index('{{- "<tool_call>" }}')
        end = hf.chat_template.index('{{- "</tool_call>" }}') + len('{{- "</tool_call>" }}')
        hf.chat_template = hf.chat_template[:start] + XML_CALL + hf.chat_template[end:]
    tokenizer = ChatTokenizer(hf, form)
    assert tokenizer.call_form == form
    return tokenizer


@pytest.fixture(scope="module")
def theirs() -> Callable[[str, ChatTokenizer, str], Calls]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; `make test-vllm` tries it in an environment of its own")
    logging.getLogger("vllm").setLevel(logging.CRITICAL)  # a traceback for every broken call
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "a"}], tools=TOOLS)
    parsers: dict[str, Any] = {}

    def read(name: str, tokenizer: ChatTokenizer, text: str) -> Calls:
        if name not in parsers:
            parsers[name] = ToolParserManager.get_tool_parser(name)(tokenizer.hf, request.tools)
        found = parsers[name].extract_tool_calls(text, request)
        return [(call.function.name, _loaded(call.function.arguments)) for call in found.tool_calls]

    return read


def _loaded(arguments: str) -> Any:
    return json.loads(arguments, parse_constant=str)


def _ours(renderer: Renderer, ids: list[int]) -> Calls:
    calls = [call["function"] for call in renderer.parse(ids).get("tool_calls", ())]
    return [(one["name"], json.loads(one["arguments"]) if one["name"] else None) for one in calls]


def _value(rng: random.Random, schema: dict[str, Any]) -> Any:
    kind = schema["type"]
    if kind == "string":
        return rng.choice(TEXTS)
    if isinstance(kind, list):  # the form cannot tell a text "null" from none
        return rng.choice([None, *(text for text in TEXTS if text != "null")])
    if kind == "integer":
        return rng.randint(-5, 10**12)
    if kind == "number":
        return rng.choice([0.25, 3, -1e-7, 12.5])
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [rng.choice([1, 2.5, "a"]) for _ in range(rng.randint(0, 3))]
    return {rng.choice("abc"): rng.choice([1, None, "x", {"deep": [True]}])}


def _written(rng: random.Random) -> tuple[Calls, list[dict[str, Any]]]:
    calls: Calls = []
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*PARAMETERS])
        keys = [key for key in PARAMETERS[name] if rng.random() < 0.8]
        calls.append((name, {key: _value(rng, PARAMETERS[name][key]) for key in keys}))
    made = [{"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}} for name, arguments in calls]
    return calls, made


def _turn(rng: random.Random, renderer: Renderer) -> tuple[Calls, list[int]]:
    calls, made = _written(rng)
    return calls, renderer.turn({"role": "assistant", "content": rng.choice(["", "I call."]), "tool_calls": made})


def _broken(rng: random.Random, text: str) -> str:
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(text) + 1)
        change = rng.randrange(6)
        if change == 0:
            text = text[:place] + text[place + rng.randint(1, 12) :]
        elif change == 1:
            text = text[:place] + rng.choice(PIECES) + text[place:]
        elif change == 2:
            text = text[:place] + text[max(0, place - rng.randint(1, 30)) :]
        elif change == 3:
            pattern, new = rng.choice(SWAPS)
            text = re.sub(pattern, lambda _, new=new: new, text, count=1)
        else:
            piece = rng.choice([one for one in PIECES if one in text] or [" "])
            text = text.replace(piece, rng.choice(["", *PIECES]), 1)
    return text


@pytest.mark.parametrize(("form", "parser"), [("json", "hermes"), ("xml", "qwen3_coder")])
def test_a_call_as_the_template_writes_it_is_the_same_call_in_vllm(
    theirs: Callable[[str, ChatTokenizer, str], Calls], form: str, parser: str
) -> None:
    tokenizer = _tokenizer(form)
    renderer = Renderer(tokenizer, TOOLS)
    for seed in range(CASES):
        calls, ids = _turn(random.Random(seed), renderer)
        assert _ours(renderer, ids) == calls == theirs(parser, tokenizer, tokenizer.decode(ids[:-1])), tokenizer.decode(ids)


def _json_difference(content: str, theirs: Calls, ours: Calls) -> str | None:
    if "<tool_call>" in json.dumps(theirs) or (not theirs and ("", None) not in ours):
        return "mark inside"
    if not theirs:
        return "refused"
    if len(theirs) == len(ours) and all(a == b or b == ("", None) for a, b in zip(theirs, ours, strict=True)):
        return "no object"
    return None


def _xml_difference(content: str, theirs: Calls, ours: Calls) -> str | None:
    if ("", None) in ours:
        return "guessed"
    if "<function=" in content:
        return "unmarked"
    if "</function" in json.dumps(ours):
        return "later end"
    if [(name, [*one]) for name, one in theirs] == [(name, [*one]) for name, one in ours]:
        pairs = [(one[key], other[key]) for (_, one), (_, other) in zip(theirs, ours, strict=True) for key in one]
        return "untyped" if all(a == b or (isinstance(b, str) and json.loads(b) == a) for a, b in pairs) else None
    return None


@pytest.mark.parametrize(
    ("form", "parser", "difference", "listed"),
    [("json", "hermes", _json_difference, JSON_DIFFERENCES), ("xml", "qwen3_coder", _xml_difference, XML_DIFFERENCES)],
)
def test_a_broken_call_is_the_same_in_vllm_or_differs_as_listed(
    theirs: Callable[[str, ChatTokenizer, str], Calls],
    form: str,
    parser: str,
    difference: Callable[[str, Calls, Calls], str | None],
    listed: dict[str, str],
) -> None:
    tokenizer = _tokenizer(form)
    renderer = Renderer(tokenizer, TOOLS)
    seen: Counter[str] = Counter()
    for seed in range(CASES):
        rng = random.Random(f"broken:{seed}")
        _, ids = _turn(rng, renderer)
        text = _broken(rng, tokenizer.decode(ids[:-1]))
        broken = list(tokenizer.literal_ids(text))
        ours, found = _ours(renderer, broken), theirs(parser, tokenizer, text)
        reason = "same" if ours == found else difference(renderer.parse(broken)["content"], found, ours)
        assert reason is not None, f"{text!r}\nvLLM: {found}\nours: {ours}"
        seen[reason] += 1
    assert set(seen) == {"same", *listed}, seen
    assert seen["same"] > CASES / 10, seen
