"""Tokenizers that talk in chat form, with what the rest of the runtime must know about them.

What it does: loads a built-in tokenizer or a Hugging Face folder, finds the token that ends a turn, says which ids the model may
never write, and gives text of the data ids that are never control ids. What it does not do: lay out conversations (`renderer.py`).
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ...compiler.canonical import canonical_json
from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import Model
from .template import ChatTemplate, Slot, sentinel, split_slots
from .template_process import TEMPLATES, TemplateFailed

BUILTIN = Path(__file__).parent / "builtin"
BUILTIN_FOLDERS = {"builtin:tiny-words": BUILTIN / "tiny_words", "builtin:bytes": BUILTIN / "bytes"}
VOCABULARY_MULTIPLE = 64  # rows of the embedding come in tiles that every layout divides
TEXT_CACHE_ENTRIES = 65536
USER = {"role": "user", "content": sentinel(0)}
CallForm = Literal["template", "json", "xml", "compact"]


class ChatTokenizer:
    """A tokenizer with its chat template.

    Attributes:
        hf: transformers' tokenizer.
        name: what the user calls it, for messages.
        template: its chat template.
        vocabulary_size: rows of the model's embedding; `len(hf)` rounded up to a multiple of 64.
        end_of_turn_id: the control token that ends an assistant's turn.
        pad_id: what fills a row.
        call_form: how a tool call is written, and so who reads it (`parser.py`); None where the template writes none. It follows
            from the tokenizer's files alone.
        call_ids: control tokens of a tool call: what comes before it and, where the form has one, after it.
        think_ids: the tokens around what the model thinks before it acts (`<think>`, `</think>`), where it may write them.
        opens_thinking: whether the template writes the first of them itself, before the model's turn.
        generation_prompt: what the template writes before the model's turn, behind a placeholder for the user's.
        invalid_ids: ids that the assistant may never write: control tokens but for the end of a turn and the call markers, and
            rows of the embedding that stand for no token.
        digest: sha256 over vocabulary, merges, text processing, control tokens and templates.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, name: str) -> None:
        self.hf = hf
        self.name = name
        self.template = ChatTemplate(hf, name)
        self.backend: Tokenizer = hf.backend_tokenizer
        added = hf.added_tokens_decoder
        self.control_texts = tuple(token.content for _, token in sorted(added.items()) if not token.content.isspace())
        self._control_ids = frozenset(self.backend.token_to_id(text) for text in self.control_texts) - {self._unknown_id()}
        self._plain = _without_control_tokens(self.backend)
        self.end_of_turn_id = self._find_end_of_turn()
        self.pad_id = self.end_of_turn_id if hf.pad_token_id is None else int(hf.pad_token_id)
        self.vocabulary_size = -(-len(hf) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.generation_prompt = self.template.text([USER], (), generation_prompt=True)
        self.call_form, self.call_ids = self._find_call_form()
        special = {index for index, token in added.items() if token.special}
        never = special | {self.pad_id} | set(range(len(hf), self.vocabulary_size))
        self.invalid_ids = frozenset(never - {self.end_of_turn_id, *self.call_ids})
        self.think_ids = self._find_think_ids()
        prompted = [one for one in self.literal_ids(self.generation_prompt) if one in self.think_ids]
        self.opens_thinking = bool(prompted) and prompted[-1] == self.think_ids[0]
        self.digest = _digest(self.backend, hf)
        self.text_ids = lru_cache(TEXT_CACHE_ENTRIES)(self._text_ids)

    @property
    def valid_ids(self) -> list[int]:
        """Ids that the assistant may write, ascending."""
        return [one for one in range(len(self.hf)) if one not in self.invalid_ids]

    def literal_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a template's own text, control tokens included."""
        return tuple(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, control tokens written out."""
        return self.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        self.hf.save_pretrained(folder)

    def _text_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text of the data (cached as `text_ids`). A control token's name in it is plain text."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return tuple(ids)
        # The model's own vocabulary lists the control token, so that its name must be taken apart.
        name = min((name for name in self.control_texts if name in text), key=text.index)
        cut = text.index(name) + 1
        if len(name) == 1:
            raise UserError(
                f"tokenizer {self.name} has no way to write {name!r} as plain text: it is a control token", exit_code=ExitCode.SPEC
            )
        return self._text_ids(text[:cut]) + self._text_ids(text[cut:])

    def _unknown_id(self) -> int | None:
        return None if self.hf.unk_token is None else self.backend.token_to_id(self.hf.unk_token)

    def _find_call_form(self) -> tuple[CallForm | None, tuple[int, ...]]:
        if self.hf.response_template is not None:
            try:
                TEMPLATES.run("check", template=self.hf.response_template)
            except TemplateFailed as error:
                raise UserError(
                    f"the response template of tokenizer {self.name} cannot be used: {error}",
                    exit_code=ExitCode.SPEC,
                    fix="mend `response_template` in tokenizer_config.json, or remove it: calls are then read as the chat template "
                    "writes them",
                ) from error
            written = dict.fromkeys(self.literal_ids(self._written_call()))
            return "template", tuple(one for one in written if one in self._control_ids and one != self.end_of_turn_id)
        vocabulary = self.hf.get_added_vocab()
        if "<call>" in vocabulary:
            return "compact", (vocabulary["<call>"],)
        if "<tool_call>" in vocabulary and "</tool_call>" in vocabulary:
            form = "xml" if "<function=" in self._written_call() else "json"
            return form, (vocabulary["<tool_call>"], vocabulary["</tool_call>"])
        return None, ()

    def _find_think_ids(self) -> tuple[int, ...]:
        vocabulary = self.hf.get_added_vocab()
        marks = tuple(vocabulary[mark] for mark in ("<think>", "</think>") if mark in vocabulary)
        return marks if len(marks) == 2 and self.invalid_ids.isdisjoint(marks) else ()

    def _written_call(self) -> str:
        """A turn with a tool call, as the template writes it."""
        call = {"type": "function", "function": {"name": sentinel(1), "arguments": {"key": sentinel(2)}}}
        turn = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return self.template.text(turn, (), generation_prompt=False).removeprefix(self.generation_prompt)

    def _find_end_of_turn(self) -> int:
        turn = [USER, {"role": "assistant", "content": sentinel(1)}]
        pieces = split_slots(self.template.text(turn, (), generation_prompt=False))
        tail = pieces[-1]
        if Slot(1, False) in pieces and isinstance(tail, str):
            for token in self.literal_ids(tail):
                if token in self._control_ids:
                    return token
        raise UserError(
            f"the chat template of tokenizer {self.name} writes no control token after an assistant's turn",
            exit_code=ExitCode.SPEC,
            fix="end the turn with a special token, as `<|im_end|>` does in ChatML",
        )


def load_tokenizer(model: Model, checkpoint_folder: Path | None = None, tokenizer_folder: Path | None = None) -> ChatTokenizer:
    """The tokenizer that a spec names.

    Args:
        model: the spec's block.
        checkpoint_folder: where the checkpoint lies, for `from-checkpoint`.
        tokenizer_folder: where the tokenizer lies, resolved, if the spec gives a path.

    Raises:
        UserError: exit code 3; there is no such tokenizer, it cannot be read, or its chat template cannot be used.
    """
    if model.tokenizer in BUILTIN_FOLDERS:
        return load_tokenizer_folder(BUILTIN_FOLDERS[model.tokenizer], name=model.tokenizer)
    folder = checkpoint_folder if model.tokenizer == "from-checkpoint" else tokenizer_folder or Path(model.tokenizer)
    if folder is None:
        raise UserError(
            "`tokenizer: from-checkpoint` needs a checkpoint, and this model starts from random weights",
            exit_code=ExitCode.SPEC,
            fix=f"set model.tokenizer to one of {', '.join(BUILTIN_FOLDERS)}, or to a folder",
        )
    return load_tokenizer_folder(folder)


def load_tokenizer_folder(folder: Path, name: str | None = None) -> ChatTokenizer:
    """The tokenizer of a Hugging Face folder. Code in the folder is never run.

    Raises:
        UserError: exit code 3, as in `load_tokenizer`.
    """
    name = name or str(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder} holds no tokenizer.json",
            exit_code=ExitCode.SPEC,
            fix="name the folder of a Hugging Face checkpoint or tokenizer (tokenizer.json, tokenizer_config.json, chat template)",
        )
    try:
        # Not AutoTokenizer: for some families it puts its own text processing in place of what tokenizer.json says.
        hf = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust reader raises bare Exception for a malformed tokenizer.json
        raise UserError(f"the tokenizer in {folder} cannot be read: {error}", exit_code=ExitCode.SPEC) from error
    return ChatTokenizer(hf, name)


def require_same_tokenizer(ours: ChatTokenizer, other: ChatTokenizer, other_owner: str) -> None:
    """Refuse a teacher whose tokens are not the student's: its probabilities would be about other tokens.

    Raises:
        UserError: exit code 3.
    """
    if ours.digest != other.digest:
        raise UserError(
            f"the tokenizer of {other_owner} differs from the student's ({other.name}: {len(other.hf)} tokens, digest"
            f" {other.digest[:12]}; {ours.name}: {len(ours.hf)} tokens, digest {ours.digest[:12]})",
            exit_code=ExitCode.SPEC,
            fix="vocabulary, control tokens and chat template must all be equal; train the teacher from the student's base",
        )


def require_same_rows(ours: Path, other: Path, other_owner: str) -> None:
    """Refuse a teacher whose output head is padded to another number of rows: its probabilities are shared out differently.

    Args:
        ours: the student's folder, with its config.json.
        other: the teacher's.

    Raises:
        UserError: exit code 3.
    """
    rows, other_rows = (json.loads((folder / "config.json").read_bytes())["vocab_size"] for folder in (ours, other))
    if rows != other_rows:
        raise UserError(
            f"the output head of {other_owner} has {other_rows:,} rows, the student's {rows:,}: one vocabulary, padded differently",
            exit_code=ExitCode.SPEC,
            fix="pad both to one `vocab_size`; train the teacher from the student's base",
        )


def _without_control_tokens(backend: Tokenizer) -> Tokenizer:
    """A twin that knows no added tokens but runs of spaces: split_special_tokens would leave `<tool_call>` and its like in."""
    description = json.loads(backend.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"].isspace()]
    description["post_processor"] = description["truncation"] = description["padding"] = None
    return Tokenizer.from_str(json.dumps(description))


def _digest(backend: Tokenizer, hf: PreTrainedTokenizerFast) -> str:
    description = json.loads(backend.to_str())
    parts = {key: description[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")}
    parts |= {"template": hf.chat_template} | ({"response": hf.response_template} if hf.response_template is not None else {})
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
