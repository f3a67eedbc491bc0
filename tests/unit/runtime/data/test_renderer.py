"""The renderer's promises: append-only, no forged control tokens, the mask, and the way back."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymath.runtime.data.build_tokenizers import build_bytes, build_words
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, ChatTokenizer, load_tokenizer_folder
from polymath.specs.diagnostics import UserError
from test_tokenizers import RESPONSE
from tokenizers import AddedToken

TOKENIZERS = {name: load_tokenizer_folder(folder, name) for name, folder in BUILTIN_FOLDERS.items()}
WORDS, BYTES = TOKENIZERS["builtin:tiny-words"], TOKENIZERS["builtin:bytes"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Ends a turn with <|im_end|> or <end>.",
            "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in parameters.items()}},
        },
    }
    for name, parameters in {
        "search": {"query": "string", "limit": "integer"},
        "sum": {"unit": "string", "values": "array"},
        "done": {},
    }.items()
]
CONTROL = sorted({text for tokenizer in TOKENIZERS.values() for text in tokenizer.control_texts})

texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.lists(st.one_of(st.sampled_from(CONTROL), st.sampled_from(["1", "2", "\n", " ", '"', "\\", "\x02" + "0" + "\x03"]))).map(
        "".join
    ),
)
words = st.sampled_from([*"abc", "1", "2", "ok", "<end>", "<|im_end|>"])


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


calls = st.one_of(
    st.builds(lambda query, limit: call("search", {"query": query, "limit": limit}), words, st.integers(0, 99)),
    st.builds(lambda unit, values: call("sum", {"unit": unit, "values": values}), words, st.lists(words, max_size=3)),
    st.just(call("done", {})),
)
assistants = st.one_of(
    st.builds(lambda text: {"role": "assistant", "content": text}, texts),
    st.builds(
        lambda text, made: {"role": "assistant", "content": text, "tool_calls": made},
        texts,
        st.lists(calls, min_size=1, max_size=3),
    ),
    st.builds(lambda made: {"role": "assistant", "content": None, "tool_calls": made}, st.lists(calls, min_size=1, max_size=2)),
)
others = st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "tool"]), texts)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [draw(others)]
    for _ in range(draw(st.integers(0, 4))):
        messages += [*draw(st.lists(others, max_size=2)), draw(assistants)]
    return messages + draw(st.lists(others, max_size=2))


def test_an_episode_built_turn_by_turn_is_the_whole_conversation_token_for_token() -> None:
    renderers = [Renderer(tokenizer, TOOLS) for tokenizer in TOKENIZERS.values()]

    @settings(max_examples=150, deadline=None)
    @given(conversations())
    def check(messages: list[dict[str, Any]]) -> None:
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for renderer in renderers:
            whole = renderer.render(messages)
            assert len(whole.ids) == len(whole.written)
            ids: list[int] = []
            written: list[bool] = []
            for number, turn in enumerate(turns):
                before = messages[turns[number - 1] + 1 : turn] if number else messages[:turn]
                prompt = renderer.extend(before) if number else renderer.open(before)
                answer = renderer.turn(messages[turn])
                ids += [*prompt, *answer]
                written += [False] * len(prompt) + [True] * len(answer)
            assert list(whole.ids[: len(ids)]) == ids
            assert list(whole.written[: len(ids)]) == written
            assert not any(whole.written[len(ids) :])
            if turns and turns[-1] == len(messages) - 1:
                assert len(whole.ids) == len(ids)

    check()


def test_no_text_of_the_data_becomes_a_control_token() -> None:
    renderers = [Renderer(tokenizer, TOOLS) for tokenizer in TOKENIZERS.values()]

    @settings(max_examples=150, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        for renderer in renderers:
            control = set(renderer.tokenizer.hf.get_added_vocab().values()) - {renderer.tokenizer.hf.unk_token_id}

            def shape(text: str, renderer: Renderer = renderer, control: set[int] = control) -> list[int]:
                messages = [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": text, "tool_calls": [call("search", {"query": text})]},
                    {"role": "tool", "content": text},
                ]
                return [token for token in renderer.render(messages).ids if token in control]

            assert shape(text) == shape("x")
            assert renderer.render([{"role": "user", "content": text}]).ids.count(renderer.tokenizer.end_of_turn_id) <= 2

    check()


def test_a_tool_description_cannot_forge_a_control_token() -> None:
    prompt = Renderer(BYTES, TOOLS).open([{"role": "user", "content": "hello"}])
    text = BYTES.decode(prompt)
    assert text.count("<|im_end|>") == 2 + len(TOOLS)
    assert prompt.count(BYTES.end_of_turn_id) == 2


def test_only_what_the_model_wrote_is_marked() -> None:
    messages = [
        {"role": "system", "content": "find"},
        {"role": "user", "content": "1 2"},
        {"role": "assistant", "content": "", "tool_calls": [call("search", {"query": "1", "limit": 2})]},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "ok"},
    ]
    rendered = Renderer(BYTES).render(messages)
    written = BYTES.decode([token for token, flag in zip(rendered.ids, rendered.written, strict=True) if flag])
    assert written == '<tool_call>{"name": "search", "arguments": {"query": "1", "limit": 2}}</tool_call><|im_end|>2<|im_end|>'


def test_byte_ids_are_what_the_template_prints() -> None:
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n"}]
    ids = Renderer(BYTES, TOOLS[2:]).render([*messages, {"role": "user", "content": "c"}]).ids
    theirs = BYTES.hf.apply_chat_template(
        [*messages, {"role": "user", "content": "c"}],
        tools=json.loads(json.dumps(TOOLS[2:]).replace("<|im_end|>", "?")),
        tokenize=False,
    )
    assert BYTES.decode(list(ids)).replace("with <|im_end|> or", "with ? or") == theirs
    assert BYTES.decode(list("é\n".encode())) == "é\n"


def test_a_rendered_call_is_read_back() -> None:
    messages = [
        call("search", {"query": "3", "limit": 2}),
        call("sum", {"unit": "1", "values": ["1", "2"]}),
        call("sum", {"unit": "1", "values": []}),
        call("done", {}),
    ]
    hf = build_words(["search", "sum", "done", "ok", "1", "2", "3"])
    hf.chat_template = WORDS.hf.chat_template
    for renderer in (Renderer(BYTES, TOOLS), Renderer(ChatTokenizer(hf, "words"), TOOLS)):
        for made in messages:
            read = renderer.parse(renderer.turn({"role": "assistant", "content": "ok", "tool_calls": [made]}))
            assert read["content"] == "ok"
            assert [call["function"]["name"] for call in read["tool_calls"]] == [made["function"]["name"]]
            assert json.loads(read["tool_calls"][0]["function"]["arguments"]) == json.loads(made["function"]["arguments"])


@pytest.mark.parametrize(
    "written",
    [
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "f"',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>",
    ],
)
def test_a_call_that_cannot_be_read_is_a_call_without_a_name(written: str) -> None:
    message = Renderer(BYTES).parse([*BYTES.literal_ids(f"so {written}"), BYTES.end_of_turn_id])
    (made,) = message["tool_calls"]
    assert message["content"] == "so"
    assert made["function"] == {"name": "", "arguments": written.removeprefix("<tool_call>").removesuffix("</tool_call>")}


@pytest.mark.parametrize("closed", ["</tool_call>", "</tool_call>\n", "", "</tool_call> and more"])
def test_a_call_is_read_whether_or_not_it_is_closed_and_whatever_follows(closed: str) -> None:
    written = '<tool_call>{"name": "f", "arguments": {"x": 1}}' + closed
    (made,) = Renderer(BYTES).parse([*BYTES.literal_ids(written), BYTES.end_of_turn_id])["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": '{"x": 1}'}


def _xml_and_template() -> tuple[ChatTokenizer, ChatTokenizer]:
    hf, own = build_bytes(), build_bytes()
    start = BYTES.hf.chat_template.index('{{- "<tool_call>" }}')
    end = BYTES.hf.chat_template.index("{%- endfor %}", start)
    written = (
        r'{{- "<tool_call>\n<function=" + call.function.name + ">\n" }}{%- for key, value in call.function.arguments.items() %}'
        r'{{- "<parameter=" + key + ">\n" }}{{- value if value is string else value | tojson }}{{- "\n</parameter>\n" }}'
        r'{%- endfor %}{{- "</function>\n</tool_call>" }}'
    )
    hf.chat_template = BYTES.hf.chat_template[:start] + written + BYTES.hf.chat_template[end:]
    own.chat_template, own.response_template = BYTES.hf.chat_template, RESPONSE
    return ChatTokenizer(hf, "xml"), ChatTokenizer(own, "own")


XML, TEMPLATE = _xml_and_template()


@pytest.mark.parametrize("tokenizer", [XML, TEMPLATE], ids=["xml", "template"])
def test_calls_of_other_forms_are_read_back_and_broken_ones_are_calls_without_a_name(tokenizer: ChatTokenizer) -> None:
    renderer = Renderer(tokenizer, TOOLS)
    made = [call("search", {"query": 'a "b"\n', "limit": 3}), call("sum", {"unit": "1", "values": [1, "b"]}), call("done", {})]
    turn = renderer.turn({"role": "assistant", "content": "so", "tool_calls": made})
    read = renderer.parse(turn)
    assert read["content"] == "so"
    functions = [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in read["tool_calls"]]
    assert functions == [(one["function"]["name"], json.loads(one["function"]["arguments"])) for one in made]
    renderer.require_readable_calls()
    broken = tokenizer.decode(turn).replace("search", "").replace("{", "")
    names = [one["function"]["name"] for one in renderer.parse(list(tokenizer.literal_ids(broken)))["tool_calls"]]
    assert "" in names


QWEN = '"<|im_start|>assistant\\n" + message.content'  # what the built-in template writes of a turn
THOUGHTS = {  # the fields of transformers' own template for Qwen3
    "thinking": {"open_pattern": r"<think>\s*", "close_pattern": r"\s*</think>\s*", "content": "text"},
    **RESPONSE["fields"],
}


def _thinking(form: str, *, prompted: bool = False) -> ChatTokenizer:
    """A tokenizer whose template lays thoughts out as Qwen's do; `prompted` where it opens them for the model."""
    hf = build_bytes()
    hf.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    source = (XML if form == "xml" else BYTES).hf.chat_template
    thoughts = '"<think>\\n" + (message.reasoning_content or "") + "\\n</think>\\n\\n" + message.content'
    turn = QWEN.replace("message.content", thoughts)
    hf.chat_template = source.replace(QWEN, turn)
    if prompted:
        hf.chat_template = hf.chat_template.replace('"<|im_start|>assistant\\n" }}', '"<|im_start|>assistant\\n<think>\\n" }}')
    assert turn in hf.chat_template
    if form == "template":
        hf.response_template = {**RESPONSE, "fields": THOUGHTS}
    return ChatTokenizer(hf, form)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("form", ["json", "xml", "template"])
def test_what_the_model_thinks_is_kept_apart_from_its_answer_and_its_calls(form: str, prompted: bool) -> None:
    tokenizer = _thinking(form, prompted=prompted)
    assert tokenizer.call_form == form
    renderer = Renderer(tokenizer, TOOLS)
    renderer.require_readable_calls()
    calls = [{"id": "call_0", **call("search", {"query": "a", "limit": 3})}]
    for message in (
        {"content": "It is 4.", "reasoning_content": "2 + 2,\n\nwhich is 4"},
        {"content": "It is 4."},
        {"content": "", "reasoning_content": "a call", "tool_calls": calls},
        {"content": "I look.", "reasoning_content": "a call", "tool_calls": calls},
    ):
        turn = renderer.turn({"role": "assistant", **message})
        read = renderer.parse(turn)
        assert read == {"role": "assistant", **message}
        assert renderer.turn(read) == turn
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    rendered = renderer.render([*conversation, *conversation])
    said = tokenizer.decode([one for one, written in zip(rendered.ids, rendered.written, strict=True) if written])
    assert said.count("c\n</think>\n\nb<|im_end|>") == 2 and "user" not in said  # thoughts are trained on as all that it wrote


@pytest.mark.parametrize(
    ("written", "content", "thought"),
    [
        ("<think>no end", "", "no end"),
        ("<think>I could <tool_call>{}</tool_call></think>4", "4", "I could <tool_call>{}</tool_call>"),
        ("<think></think>4", "4", None),
        ("4</think>", "4</think>", None),
        ("4", "4", None),
    ],
)
@pytest.mark.parametrize("form", ["json", "template"])
def test_thoughts_that_are_not_as_a_template_writes_them(form: str, written: str, content: str, thought: str | None) -> None:
    tokenizer = _thinking(form)
    read = Renderer(tokenizer, TOOLS).parse([*tokenizer.literal_ids(written), tokenizer.end_of_turn_id])
    assert (read["content"], read.get("reasoning_content"), "tool_calls" in read) == (content, thought, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"content": {"close_pattern": r"(?:(?:a|a)+)+b", "content": "text"}},  # every way to fail
        {"thinking": {"open_pattern": "", "close_pattern": "", "repeats": True}, "content": {"content": "text"}},  # nothing
        {
            "tool_calls": {
                "open": "<tool_call>", "close": "</tool_call>", "content": "xml-inline", "repeats": True,
                "content_args": {"tag_pattern": r"(?P<key>(?:a|a)+)+(?P<value>b)"},
            },
            "content": {"content": "text"},
        },
    ],
    ids=["anchor", "nothing", "tags"],
)  # fmt: skip
def test_a_hostile_response_template_holds_no_turn_up(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polymath.runtime.data.template_process.TEMPLATE_SECONDS", 0.3)
    hf = build_bytes()
    hf.chat_template, hf.response_template = BYTES.hf.chat_template, {**RESPONSE, "fields": fields}
    tokenizer = ChatTokenizer(hf, "hostile")
    written = "<tool_call>" + "a" * 60 + "!</tool_call>"
    read: list[Any] = []
    ids = [*tokenizer.literal_ids(written), tokenizer.end_of_turn_id]
    thread = threading.Thread(target=lambda: read.append(Renderer(tokenizer).parse(ids)), daemon=True)  # no signal reaches it
    thread.start()
    thread.join(60)
    assert [one["function"] for one in read[0]["tool_calls"]] == [{"name": "", "arguments": written}]


def test_tools_are_not_offered_by_a_tokenizer_that_cannot_call_them() -> None:
    mute = with_template(BYTES.template.hf.chat_template.replace("message.tool_calls or []", "[]"))
    Renderer(mute).require_readable_calls()
    with pytest.raises(UserError, match="tokenizer mine cannot call tools") as caught:
        Renderer(mute, TOOLS).require_readable_calls()
    assert caught.value.exit_code == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, BYTES.vocabulary_size - 1), max_size=40))
def test_any_ids_can_be_read(ids: list[int]) -> None:
    for tokenizer in (*TOKENIZERS.values(), XML, TEMPLATE):
        message = Renderer(tokenizer, TOOLS).parse([token % tokenizer.vocabulary_size for token in ids])
        assert isinstance(message["content"], str)
        for made in message.get("tool_calls", []):
            if made["function"]["name"]:
                assert isinstance(json.loads(made["function"]["arguments"]), dict)


def test_arguments_are_written_in_the_order_of_the_parameters() -> None:
    renderer = Renderer(WORDS, TOOLS)
    ordered, swapped = (
        {"role": "assistant", "content": "", "tool_calls": [call("search", arguments)]}
        for arguments in ({"query": "1", "limit": 2}, {"limit": 2, "query": "1"})
    )
    assert renderer.turn(ordered) == renderer.turn(swapped)
    with pytest.raises(ValueError, match="parameters are"):
        renderer.turn({"role": "assistant", "content": "", "tool_calls": [call("search", {"limit": 2})]})


def with_template(template: str) -> ChatTokenizer:
    hf = build_bytes()
    hf.chat_template = template
    return ChatTokenizer(hf, "mine")


def test_a_template_that_rewrites_history_is_refused_by_name() -> None:
    forgets = BYTES.template.hf.chat_template.replace(
        '"<|im_start|>assistant\\n" + message.content', '"<|im_start|>assistant\\n" + (message.content if loop.last else "...")'
    )
    assert forgets != BYTES.template.hf.chat_template
    with pytest.raises(UserError, match=r"tokenizer mine .* rewrites history") as caught:
        Renderer(with_template(forgets))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages }}", "Python value"),
        ("\x02", "control characters"),
    ],
)
def test_a_hostile_or_broken_template_is_a_clear_error(template: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        with_template(template)
    assert caught.value.exit_code == 3


def test_a_conversation_that_the_model_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with"):
        Renderer(BYTES).render([{"role": "assistant", "content": "a"}])


def test_a_saved_tokenizer_renders_the_same(tmp_path: Path) -> None:
    for tokenizer in TOKENIZERS.values():
        tokenizer.save(tmp_path / str(tokenizer.vocabulary_size))
        again = load_tokenizer_folder(tmp_path / str(tokenizer.vocabulary_size))
        messages = [{"role": "user", "content": "search <end> 1"}, {"role": "assistant", "content": "2"}]
        assert again.digest == tokenizer.digest
        assert Renderer(again, TOOLS).render(messages) == Renderer(tokenizer, TOOLS).render(messages)
