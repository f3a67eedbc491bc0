"""Promises of the ledger: a batch is there completely, as it was written, or not at all."""

import errno
from pathlib import Path

import pytest
import torch
from polymath.runtime.ledger import MANIFEST, Ledger, LedgerSample
from polymath.specs.diagnostics import UserError


def _sample(number: int, *, scored: bool = True) -> LedgerSample:
    draw = torch.Generator().manual_seed(number)
    length, written = 5 + number, tuple(position >= 3 for position in range(5 + number))
    return LedgerSample(
        number=number,
        ids=tuple(torch.randint(0, 200_000, (length,), generator=draw).tolist()),
        written=written,
        logprobs=tuple(torch.tensor([-0.1 * position * one for position, one in enumerate(written)]).tolist()),
        domain="search",
        task_key=f"wer findet «{number}»?",
        group=number // 2,
        status="COMPLETED",
        reward=0.1,
        outcome=1.0,
        process=0.25 * number,
        turns=2,
        interruptions=0,
        dropped=0,
        policy_version=4,
        teacher="searcher" if scored else None,
        support_ids_WK=torch.randint(0, 200_000, (sum(written), 3), generator=draw) if scored else None,
        support_logprobs_WK=torch.rand((sum(written), 3), generator=draw) if scored else None,
    )


def _publish(ledger: Ledger, index: int = 0, *, world_size: int = 2, count: int = 5) -> None:
    for rank in range(world_size):
        ledger.write_part(index, rank, [_sample(number) for number in range(rank, count, world_size)])
    ledger.publish(index, world_size)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_read_is_what_was_written_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "batches")
    _publish(ledger)
    for number, sample in enumerate(ledger.read(0)):
        expected = _sample(number)
        for name in LedgerSample.__dataclass_fields__:
            value, wanted = getattr(sample, name), getattr(expected, name)
            assert torch.equal(value, wanted) if isinstance(wanted, torch.Tensor) else value == wanted, name


def test_samples_without_scores_and_ranks_without_samples_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write_part(3, 0, [_sample(0, scored=False)])
    ledger.write_part(3, 1, [])
    ledger.publish(3, 2)
    (sample,) = ledger.read(3)
    assert sample.support_ids_WK is None and sample.ids == _sample(0).ids


def test_the_order_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    for world_size in (1, 3):
        _publish(Ledger(tmp_path / str(world_size)), world_size=world_size)
    one, three = (Ledger(tmp_path / str(world_size)).read(0) for world_size in (1, 3))
    assert [sample.ids for sample in one] == [sample.ids for sample in three]


def test_the_same_samples_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _publish(Ledger(tmp_path / name))
    assert _bytes(tmp_path / "a" / "000000") == _bytes(tmp_path / "b" / "000000")


def test_a_crash_between_the_parts_and_publishing_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write_part(0, 0, [_sample(0), _sample(2)])  # the other rank, and the first before publishing, never got further
    assert not Ledger(tmp_path).exists(0)
    with pytest.raises(UserError, match="manifest"):
        Ledger(tmp_path).read(0)

    _publish(ledger, world_size=1)
    assert [sample.number for sample in ledger.read(0)] == [0, 1, 2, 3, 4]


def test_parts_of_an_abandoned_attempt_are_cleaned_away(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for rank in range(4):  # an attempt with more ranks, and one of another batch
        ledger.write_part(0, rank, [_sample(rank)])
        ledger.write_part(9, rank, [_sample(rank)])
    _publish(ledger)
    assert len(ledger.read(0)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]


@pytest.mark.parametrize("name", ["part-00000.safetensors", "part-00001.safetensors", "part-00000.json", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    ledger = Ledger(tmp_path)
    _publish(ledger)
    path = tmp_path / "000000" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-2])
    else:
        data[0] ^= 1
        path.write_bytes(data)
    with pytest.raises(UserError, match=name) as caught:
        ledger.read(0)
    assert caught.value.exit_code == 4
    assert str(tmp_path / "000000") in str(caught.value.fix)


def test_a_full_disk_ends_with_one_clear_message_and_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    write_bytes = Path.write_bytes

    def half_written(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(UserError, match="disk is full") as caught:
        ledger.write_part(0, 0, [_sample(0)])
    assert caught.value.exit_code == 6
    assert not ledger.exists(0)
    assert not list(tmp_path.rglob("part-*"))


def test_a_batch_of_another_format_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    _publish(ledger)
    manifest = tmp_path / "000000" / MANIFEST
    manifest.write_text(manifest.read_text().replace("polymath.ledger/3", "polymath.ledger/2"))
    with pytest.raises(UserError, match="another version") as caught:
        ledger.read(0)
    assert caught.value.exit_code == 4
