"""Writes the built-in tokenizers: `python -m polymath.runtime.data.build_tokenizers`.

`builtin:tiny-words` has one token per word of the six worlds at their tiny settings; any other word is `<unk>`. `builtin:bytes`
has one token per byte, so that it can write everything. Both keep control tokens behind the vocabulary proper, where no text of
the data reaches them. The chat templates beside them are written by hand.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..worlds.vocabulary import tiny_words
from .tokenizers import BUILTIN_FOLDERS

WORDS_CONTROL = ("<pad>", "<bos>", "<system>", "<user>", "<model>", "<tool>", "<end>")
WORDS_CALL = ("<call>",)
BYTES_CONTROL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<tool_response>", "</tool_response>")
BYTES_CALL = ("<tool_call>", "</tool_call>")
MODEL_MAX_TOKENS = 1 << 20  # neither tokenizer has a limit of its own


def build_words(words: list[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over words that white space separates."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_control(tokenizer, WORDS_CONTROL, WORDS_CALL, pad="<pad>", bos="<bos>", eos="<end>", unk="<unk>")


def build_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer whose id of a byte is the byte."""
    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(byte_symbols())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_control(tokenizer, BYTES_CONTROL, BYTES_CALL, pad="<|pad|>", bos=None, eos="<|im_end|>", unk=None)


def byte_symbols() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte (the GPT-2 table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    substitutes = iter(range(256, 512))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


def _with_control(
    tokenizer: Tokenizer,
    control: tuple[str, ...],
    call: tuple[str, ...],
    *,
    pad: str,
    bos: str | None,
    eos: str,
    unk: str | None,
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in call])  # the model may write these
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        model_max_length=MODEL_MAX_TOKENS,
    )


def write(name: str, folder: Path) -> None:
    """Write one built-in tokenizer; its chat template is the hand-written one."""
    hf = build_words(tiny_words()) if name == "builtin:tiny-words" else build_bytes()
    hf.chat_template = (BUILTIN_FOLDERS[name] / "chat_template.jinja").read_text(encoding="utf-8")
    hf.save_pretrained(folder)


if __name__ == "__main__":
    for builtin_name, builtin_folder in BUILTIN_FOLDERS.items():
        write(builtin_name, builtin_folder)
        print(f"wrote {builtin_folder}")
