"""Frames carry tensors and words across a socket, and nothing that runs."""

import socket
import threading

import pytest
import torch
from polymath.runtime.engines import frames
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


def test_a_closed_connection_and_a_frame_too_large_are_told_apart(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MOST_BYTES", 100)
    send(pair[0], Frame(words={"long": "x" * 200}))
    with pytest.raises(ValueError, match="100 is the most"):
        receive(pair[1])
    pair[0].close()
    pair[1].setblocking(True)
    with pytest.raises(EOFError):
        while True:
            frames._exactly(pair[1], 64)


def test_a_pickle_in_place_of_a_frame_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    body = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    pair[0].sendall(len(body).to_bytes(8, "little") + body)
    with pytest.raises(ValueError):
        receive(pair[1])
