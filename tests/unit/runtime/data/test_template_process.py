"""A chat template never holds up the process that uses it, whatever it does, and an honest one notices nothing."""

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.data import template_process
from polymath.runtime.data.build_tokenizers import build_bytes
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.template_process import TEMPLATES
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, ChatTokenizer, load_tokenizer_folder
from polymath.specs.diagnostics import ExitCode, UserError

TOKENIZERS = {name: load_tokenizer_folder(folder, name) for name, folder in BUILTIN_FOLDERS.items()}
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "loops": (LOOPS, r"longer than 0\.3 s"),
    "doubles a string": (
        "{% set all = namespace(text='x' * 4096) %}{% for a in range(99) %}{% set all.text = all.text ~ all.text %}{% endfor %}",
        "more than 512 MiB of memory",
    ),
    "doubles it while it is read": ("{{ 'x' * 10 ** 10 }}", "more than 512 MiB of memory"),
    "calls itself": ("{% macro on() %}{{ on() }}{% endmacro %}{{ on() }}", "calls itself without end"),
    "writes without end": ("{% for a in range(99999) %}" + "x" * 100 + "{% endfor %}", "more than 8000000 characters"),
    "clears the screen": ("{{ raise_exception('\x1b[2J' + 'no' * 9999) }}", r"TemplateError:  \[2J[no]{200,300}"),
}


def with_template(folder: Path, template: str) -> Path:
    """A tokenizer's folder that holds this chat template."""
    hf = build_bytes()
    hf.chat_template = template
    hf.save_pretrained(folder)
    return folder


def refusal_in_a_thread(work: Callable[[], Any]) -> UserError:
    """What the user is told of a mistake that a thread runs into, which no signal reaches."""
    raised: list[UserError] = []

    def run() -> None:
        try:
            work()
        except UserError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    (error,) = raised
    return error


def show(tokenizer: ChatTokenizer, *contents: str) -> str:
    messages = [{"role": role, "content": content} for role, content in zip(("user", "assistant", "user"), contents, strict=False)]
    return tokenizer.template.text(messages, (), generation_prompt=False)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_template_beyond_a_limit_is_refused_when_it_is_loaded_and_stops_no_other(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, why = HOSTILE[kind]
    folder = with_template(tmp_path / "theirs", template)
    before = show(TOKENIZERS["builtin:bytes"], "a", "b")
    if kind == "loops":
        monkeypatch.setattr(template_process, "TEMPLATE_SECONDS", 0.3)
    error = refusal_in_a_thread(lambda: load_tokenizer_folder(folder))
    assert f"tokenizer {folder} cannot be used: " in str(error)
    assert re.search(why, str(error))
    assert error.exit_code == ExitCode.SPEC
    assert "chat_template.jinja" in str(error.fix)
    assert show(TOKENIZERS["builtin:bytes"], "a", "b") == before


def test_a_template_that_waits_for_a_longer_conversation_is_refused_before_anything_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = TOKENIZERS["builtin:bytes"].hf.chat_template + "{% if messages | length > 4 %}" + LOOPS + "{% endif %}"
    tokenizer = load_tokenizer_folder(with_template(tmp_path, waits))
    monkeypatch.setattr(template_process, "TEMPLATE_SECONDS", 0.3)
    assert "longer than" in str(refusal_in_a_thread(lambda: Renderer(tokenizer)))


def test_the_child_is_replaced_when_something_killed_it() -> None:
    before = show(TOKENIZERS["builtin:bytes"], "a", "b")
    child = TEMPLATES._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert show(TOKENIZERS["builtin:bytes"], "a", "b") == before


def test_an_interrupted_rendering_leaves_no_answer_behind_for_the_next() -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    late = "late" + LOOPS.replace("range(99999)", "range(99)", 1)
    slow: dict[str, Any] = {"template": late, "messages": [], "tools": None, "generation_prompt": False, "special_tokens": {}}
    before = show(TOKENIZERS["builtin:bytes"], "a", "b")
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Interrupted):
            TEMPLATES.run("render", **slow)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert show(TOKENIZERS["builtin:bytes"], "a", "b") == before


def test_a_process_that_cannot_start_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process.sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match="did not start") as caught:
        template_process.TemplateProcess().run("check", template={})
    assert caught.value.exit_code == ExitCode.UNFIT


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_comes_out_is_what_transformers_writes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    call = {
        "type": "function",
        "function": {"name": "find", "arguments": {"é\u2028": ["𝄞", 1, 2.5, None, True, {}], "z": "\x02" + "5\x03"}},
    }
    messages = [
        {"role": "system", "content": "\ud800 <b>"},
        {"role": "user", "content": " a\n"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": '{"a": 1}', "name": "find", "tool_call_id": "1"},
        {"role": "assistant", "content": "é"},
    ]
    tools = [{"type": "function", "function": {"name": "find", "description": "<&>'", "parameters": {"z": 1, "a": {"type": "x"}}}}]
    for offered in ([], tools):
        for prompt in (False, True):
            theirs = tokenizer.hf.apply_chat_template(messages, tools=offered or None, add_generation_prompt=prompt, tokenize=False)
            assert tokenizer.template.text(messages, offered, generation_prompt=prompt) == theirs
