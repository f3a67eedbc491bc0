"""Texts that are nearly the same, by MinHash signatures in banded buckets.

What it does: estimates the Jaccard similarity of two texts' word shingles from signatures of fixed size, and finds the earlier
texts like a new one without comparing it with all of them. Memory is a signature (512 bytes) and 32 bucket entries a text, however
long the text is. What it does not do: see that a short text lies inside a long one, or know what words mean.

Sources: Broder, On the resemblance and containment of documents (1997); Indyk and Motwani (1998) for the buckets. Two texts of
similarity s meet in a bucket with probability 1 - (1 - s^4)^32: above 0.9999 from 0.72 up. The estimate's standard error is
sqrt(s (1 - s) / 128), at most 0.045.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

PERMUTATIONS, BANDS = 128, 32
ROWS = PERMUTATIONS // BANDS
SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")
_SEEDS = np.random.Generator(np.random.PCG64(0x5EED)).integers(1, 2**63, size=(2, PERMUTATIONS, 1), dtype=np.uint64)
_MULTIPLIERS, _OFFSETS = _SEEDS[0] * np.uint64(2) + np.uint64(1), _SEEDS[1]
Signature = npt.NDArray[np.uint32]  # [PERMUTATIONS]


def shingles(text: str, words: int = SHINGLE_WORDS) -> set[int]:
    """64-bit hashes of every run of `words` words, case and punctuation aside; of a shorter text, its one run."""
    found = _WORD.findall(text.casefold())
    runs = range(max(1, len(found) - words + 1))
    return {_hash64(" ".join(found[start : start + words])) for start in runs}


def signature(text: str) -> Signature:
    """The least value of every hash function over the text's shingles."""
    hashes = np.fromiter(shingles(text), dtype=np.uint64)
    least = np.full(PERMUTATIONS, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(hashes), 4096):  # a long text needs no array of all its shingles times all functions
        values = (_MULTIPLIERS * hashes[start : start + 4096] + _OFFSETS) >> np.uint64(32)  # wraps: multiply-shift
        least = np.minimum(least, values.min(axis=1).astype(np.uint32))
    return least


def similarity(one: Signature, other: Signature) -> float:
    """The estimated Jaccard similarity of the texts behind two signatures, 0 to 1."""
    return float(np.count_nonzero(one == other)) / PERMUTATIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """An earlier text that is like the one asked about."""

    key: str
    similarity: float


@dataclass(slots=True)
class NearDuplicates:
    """The texts seen so far. Texts alike from `threshold` up count as nearly the same."""

    threshold: float = 0.8
    _signatures: dict[str, Signature] = field(default_factory=dict)
    _buckets: dict[tuple[int, bytes], list[str]] = field(default_factory=dict)

    def add(self, key: str, text: str) -> None:
        """Remember a text. A key is remembered once."""
        if key in self._signatures:
            return
        self._signatures[key] = one = signature(text)
        for bucket in _bands(one):
            self._buckets.setdefault(bucket, []).append(key)

    def find(self, text: str) -> list[Match]:
        """The remembered texts that are nearly the same, most similar first."""
        asked = signature(text)
        candidates = {key for bucket in _bands(asked) for key in self._buckets.get(bucket, ())}
        matches = [Match(key=key, similarity=similarity(asked, self._signatures[key])) for key in candidates]
        near = [match for match in matches if match.similarity >= self.threshold]
        return sorted(near, key=lambda match: (-match.similarity, match.key))

    def is_new(self, key: str, text: str) -> bool:
        """Whether no remembered text is nearly the same; a new one is remembered."""
        if self.find(text):
            return False
        self.add(key, text)
        return True

    def __len__(self) -> int:
        return len(self._signatures)


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _bands(one: Signature) -> Iterable[tuple[int, bytes]]:
    return ((band, one[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS))
