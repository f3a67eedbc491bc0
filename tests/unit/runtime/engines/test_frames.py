"""Frames carry tensors and words across a socket, and nothing that runs."""

import socket
import threading

import pytest
import torch
from polymath.runtime.engines import frames
from polymath.runtime.engines.endpoint import Unreadable
from polymath.runtime.engines.frames import Frame, ragged, receive, send, sequences_of


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_what_is_sent_arrives_bit_for_bit_and_its_bytes_are_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    tensors = {"ids": torch.arange(200_000), "logprobs": torch.rand(300, 7), "none": torch.zeros(0, 3)}
    sent: list[int] = []
    sender = threading.Thread(target=lambda: sent.append(send(pair[0], Frame(words={"call": "score", "k": 7}, tensors=tensors))))
    sender.start()
    frame, received = receive(pair[1])
    sender.join()
    assert frame.words == {"call": "score", "k": 7}
    assert frame.tensors.keys() == tensors.keys()
    assert all(torch.equal(frame.tensors[name], tensor) for name, tensor in tensors.items())
    assert sent == [received] and received > 200_000 * 8


def test_sequences_of_any_length_come_back(pair: tuple[socket.socket, socket.socket]) -> None:
    for sequences in ([[1, 2, 3], [4], [5, 6]], []):
        send(pair[0], Frame(words={}, tensors=ragged(sequences)))
        assert sequences_of(receive(pair[1])[0].tensors) == sequences


def test_a_closed_connection_and_a_frame_too_large_are_told_apart(pair: tuple[socket.socket, socket.socket]) -> None:
    send(pair[0], Frame(words={"long": "x" * 200}))
    with pytest.raises(Unreadable, match="100 is the most"):
        receive(pair[1], 100)
    pair[0].close()
    pair[1].setblocking(True)
    with pytest.raises(EOFError):
        while True:
            frames._exactly(pair[1], 64)


def test_a_pickle_in_place_of_a_frame_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    body = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    pair[0].sendall(len(body).to_bytes(8, "little") + body)
    with pytest.raises(Unreadable):
        receive(pair[1])


def test_a_length_beyond_all_bounds_is_refused_before_anything_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall((2**60).to_bytes(8, "little"))  # and nothing after it, which a reader would wait for
    with pytest.raises(Unreadable, match=f"a frame of {2**60} bytes; {frames.MOST_BYTES} is the most"):
        receive(pair[1])


def test_a_frame_that_breaks_off_is_a_side_that_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall((1000).to_bytes(8, "little") + b"x" * 999)
    pair[0].close()
    with pytest.raises(EOFError):
        receive(pair[1])


def _file(header: bytes, content: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + content


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        (2**60).to_bytes(8, "little") + b"{}",
        _file(b"{"),
        _file(b"[]"),
        _file(b"{%s}" % ONE, b"1234"),
        _file(b'{"__metadata__":{"other":"{}"},%s}' % ONE, b"1234"),
        _file(b'{"__metadata__":{"words":"{"},%s}' % ONE, b"1234"),
        _file(b'{"__metadata__":{"words":"[]"},%s}' % ONE, b"1234"),
        _file(b'{"__metadata__":{"words":"%s"},%s}' % (b"[" * 100_000, ONE), b"1234"),
        _file(b'{"__metadata__":{"words":"{}"},%s}' % ONE, b"123"),
        _file(b'{"__metadata__":{"words":"{}"},"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}', b"1234"),
        _file(b'{"__metadata__":{"words":"{}"},"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    ],
    ids=[
        "empty", "html", "huge header", "half a header", "header of another type", "no metadata", "no words", "half a word",
        "words of another type", "words too deep", "short tensor", "tensor of other bytes", "unknown format",
    ],
)  # fmt: skip
def test_what_is_no_frame_is_one_typed_error(pair: tuple[socket.socket, socket.socket], body: bytes) -> None:
    sender = threading.Thread(target=pair[0].sendall, args=(len(body).to_bytes(8, "little") + body,))
    sender.start()
    with pytest.raises(Unreadable):
        receive(pair[1])
    sender.join()
