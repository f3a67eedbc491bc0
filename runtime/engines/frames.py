"""Messages between two processes of ours: named tensors and a few words, as safetensors. Nothing is ever unpickled.

A frame is its length in eight bytes and a safetensors file: the tensors, and the words as JSON in the file's metadata.
"""

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .endpoint import Unreadable

LENGTH_BYTES = 8
MOST_BYTES = 2**32  # of a frame: the full distributions of 7,000 tokens over 150,000 ids
WORDS = "words"
WORKING = {"working": True}  # the words of a worker that makes steps and is not done
SHOWN = 200  # characters of what is wrong with a frame


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One message."""

    words: Mapping[str, Any]  # JSON
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def send(connection: socket.socket, frame: Frame) -> int:
    """Send a frame; how many bytes it took."""
    tensors = dict(frame.tensors) or {"none": torch.zeros(0)}  # the format wants one
    body = save(tensors, metadata={WORDS: json.dumps(frame.words, allow_nan=False)})
    connection.sendall(len(body).to_bytes(LENGTH_BYTES, "little"))
    connection.sendall(body)
    return LENGTH_BYTES + len(body)


def receive(connection: socket.socket, most_bytes: int = MOST_BYTES) -> tuple[Frame, int]:
    """The next frame, and how many bytes it took. A longer one than `most_bytes` is not read.

    Raises:
        EOFError: the other side is gone.
        Unreadable: what came is no frame.
    """
    length = int.from_bytes(_exactly(connection, LENGTH_BYTES), "little")
    if length > most_bytes:
        raise Unreadable(f"a frame of {length} bytes; {most_bytes} is the most")
    body = bytes(_exactly(connection, length))
    try:
        tensors = load(body)
        header = json.loads(body[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(body[:LENGTH_BYTES], "little")])
        words = json.loads(header["__metadata__"][WORDS])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"a frame of {length} bytes that is none: {type(error).__name__}: {str(error)[:SHOWN]}") from error
    if not isinstance(words, dict):
        raise Unreadable("a frame without words")
    return Frame(words=words, tensors=tensors), LENGTH_BYTES + length


def _exactly(connection: socket.socket, count: int) -> bytearray:
    content = bytearray()
    while len(content) < count:
        chunk = connection.recv(min(count - len(content), 2**20))
        if not chunk:
            raise EOFError("the other side closed the connection")
        content += chunk
    return content


def ragged(sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token ids of sequences of any length as two tensors, `ids` and `lengths`."""
    return {
        "ids": torch.tensor([one for sequence in sequences for one in sequence], dtype=torch.int64),
        "lengths": torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64),
    }


def sequences_of(tensors: Mapping[str, Tensor]) -> list[list[int]]:
    """What `ragged` was made of."""
    return [part.tolist() for part in tensors["ids"].split(tensors["lengths"].tolist())]
