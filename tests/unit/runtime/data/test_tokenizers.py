"""The built-in tokenizers, and what is refused."""

import json
from pathlib import Path

import pytest
from polymath.runtime.data.build_tokenizers import write
from polymath.runtime.data.tokenizers import (
    BUILTIN_FOLDERS,
    ChatTokenizer,
    load_tokenizer,
    load_tokenizer_folder,
    require_same_rows,
    require_same_tokenizer,
)
from polymath.runtime.worlds.vocabulary import tiny_words
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def model(tokenizer: str) -> Model:
    return Model(family="qwen3_moe", checkpoint="random", tokenizer=tokenizer)


@pytest.mark.parametrize("name", BUILTIN_FOLDERS)
def test_the_committed_files_are_fresh(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    for path in sorted(tmp_path.iterdir()):
        committed = BUILTIN_FOLDERS[name] / path.name
        assert path.read_bytes() == committed.read_bytes(), f"run python -m polymath.runtime.data.build_tokenizers ({path.name})"


def test_every_word_of_the_worlds_is_one_token() -> None:
    tokenizer = load_tokenizer(model("builtin:tiny-words"))
    ids = tokenizer.text_ids(" ".join(tiny_words()))
    assert len(set(ids)) == len(ids) == len(tiny_words())
    assert tokenizer.hf.unk_token_id not in ids
    assert tokenizer.text_ids("surely-no-word <end>") == (tokenizer.hf.unk_token_id,) * 2


def test_every_byte_is_its_own_id() -> None:
    tokenizer = load_tokenizer(model("builtin:bytes"))
    text = "".join(map(chr, range(1, 0x250))) + "日本 \U0001f600"
    assert tokenizer.text_ids(text) == tuple(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


@pytest.mark.parametrize("name", BUILTIN_FOLDERS)
def test_the_model_may_end_its_turn_and_call_tools_but_write_no_other_control_token(name: str) -> None:
    tokenizer = load_tokenizer(model(name))
    assert tokenizer.vocabulary_size % 64 == 0
    assert set(range(len(tokenizer.hf), tokenizer.vocabulary_size)) <= tokenizer.invalid_ids
    assert tokenizer.pad_id in tokenizer.invalid_ids
    assert not {tokenizer.end_of_turn_id, *tokenizer.call_ids} & tokenizer.invalid_ids
    control = set(tokenizer.hf.get_added_vocab().values()) - {tokenizer.end_of_turn_id, *tokenizer.call_ids}
    assert control <= tokenizer.invalid_ids


@pytest.mark.parametrize("name", BUILTIN_FOLDERS)
def test_transformers_reads_the_same_tokens_beside_a_model(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model(name))
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    hf = AutoTokenizer.from_pretrained(tmp_path)
    text = "search 1 2 <end><|im_end|>\n é"
    assert hf.encode(text, add_special_tokens=False) == list(tokenizer.literal_ids(text))
    assert hf.chat_template == tokenizer.hf.chat_template


def test_a_control_token_in_the_models_own_vocabulary_cannot_be_typed() -> None:
    backend = Tokenizer(models.BPE(vocab={"<": 0, "e": 1, ">": 2, "<e": 3, "<e>": 4}, merges=[("<", "e"), ("<e", ">")]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")
    hf.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = ChatTokenizer(hf, "merged")
    assert tokenizer.end_of_turn_id == 4
    assert tokenizer.text_ids("e<e>e") == (1, 0, 1, 2, 1)


def test_what_cannot_be_a_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer") as caught:
        load_tokenizer(model("from-checkpoint"), tmp_path)
    assert caught.value.exit_code == 3
    with pytest.raises(UserError, match="needs a checkpoint"):
        load_tokenizer(model("from-checkpoint"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(model(str(tmp_path)))
    write("builtin:bytes", tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(model(str(tmp_path)))


def test_a_teacher_with_another_vocabulary_is_another_tokenizer() -> None:
    with pytest.raises(UserError, match="teacher searcher differs") as caught:
        require_same_tokenizer(
            load_tokenizer(model("builtin:bytes")), load_tokenizer(model("builtin:tiny-words")), "teacher searcher"
        )
    assert caught.value.exit_code == 3


def test_a_teacher_whose_head_is_padded_to_other_rows_is_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "ours", tmp_path / "same", tmp_path / "other"]
    for folder, rows in zip(folders, (384, 384, 448), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    require_same_rows(folders[0], folders[1], "teacher searcher")
    with pytest.raises(UserError, match="teacher searcher has 448 rows, the student's 384") as caught:
        require_same_rows(folders[0], folders[2], "teacher searcher")
    assert caught.value.exit_code == 3


def test_a_teacher_with_another_template_is_another_tokenizer(tmp_path: Path) -> None:
    ours = load_tokenizer(model("builtin:bytes"))
    ours.save(tmp_path)
    require_same_tokenizer(ours, load_tokenizer_folder(tmp_path), "teacher searcher")
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "model"))
    with pytest.raises(UserError, match="teacher searcher differs") as caught:
        require_same_tokenizer(ours, load_tokenizer_folder(tmp_path), "teacher searcher")
    assert caught.value.exit_code == 3


RESPONSE = {  # transformers' own for Qwen3, as it stands in its server
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}


def with_response_template(response: object, folder: Path) -> ChatTokenizer:
    write("builtin:bytes", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "response_template": response}))
    return load_tokenizer_folder(folder)


def test_the_tokenizer_s_files_alone_say_how_calls_are_written_and_read(tmp_path: Path) -> None:
    assert load_tokenizer(model("builtin:tiny-words")).call_form == "compact"
    plain = load_tokenizer(model("builtin:bytes"))
    assert plain.call_form == "json"
    own = with_response_template(RESPONSE, tmp_path / "own")
    assert own.call_form == "template" and own.call_ids == plain.call_ids and own.invalid_ids == plain.invalid_ids
    own.save(tmp_path / "saved")
    saved = load_tokenizer_folder(tmp_path / "saved")
    assert saved.call_form == "template" and saved.digest == own.digest != plain.digest
    with pytest.raises(UserError, match="teacher searcher differs"):
        require_same_tokenizer(plain, own, "teacher searcher")


@pytest.mark.parametrize("response", [{}, [], {"start_anchor": "(", "fields": {"content": {"content": "sql"}}}, {"version": 9}])
def test_a_response_template_that_says_nothing_is_a_clear_error(response: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="response template of tokenizer") as caught:
        with_response_template(response, tmp_path)
    assert caught.value.exit_code == 3
