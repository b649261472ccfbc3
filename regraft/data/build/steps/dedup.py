"""Each text once, exactly and nearly, and none of the prompts of an evaluation.

Near duplicates by MinHash ("On the resemblance and containment of documents", Broder 1997) with
locality-sensitive hashing: documents share a bucket if all `rows` hashes of one of `bands` agree,
which happens for two of similarity s with probability 1 - (1 - s^rows)^bands; of those in a bucket
the signatures are compared. 14 bands of 8 rows and 5-grams of words are FineWeb's settings (arXiv
2406.17557). Signatures are datasketch's. They are on disk, as the buckets are, which hold their
numbers: about 900 bytes a document with these settings.

Decontamination as for GPT-3 (arXiv 2005.14165, appendix C): a document that shares a 13-gram of
words with a prompt is dropped.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xxhash
from pydantic import Field, model_validator

from regraft.data.build.disk_table import DiskTable
from regraft.data.build.document import Document
from regraft.data.build.step import Context, Step
from regraft.data.build.steps.prompts import prompt_texts
from regraft.errors import InputError, writing
from regraft.recipe_values import Count, Share

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SEED = 1
_HASHES = 10_000  # most of a document
_BATCH = 4096  # sequences of words that are hashed at once


class Dedup(Step):
    """Drop documents that are there already, exactly or nearly, or that hold evaluation prompts."""

    name: ClassVar[str] = "dedup"
    exact: bool = Field(default=True, description="drop texts that differ in spaces and case only")
    near: bool = Field(default=True, description="drop near duplicates, by MinHash")
    similarity: Share = Field(
        default=0.8, description="least share of common word sequences of near duplicates"
    )
    bands: Count = Field(default=14, description="of hashes; more find less similar texts")
    band_rows: Count = Field(
        default=8, description="hashes in a band; fewer find less similar texts"
    )
    words: Count = Field(default=5, description="of the sequences that are compared")
    prompts: list[str] = Field(
        default=[],
        description="files with evaluation prompts (result.json of `regraft evaluate`, jsonl, "
        "txt): documents that share a sequence of words with them are dropped",
    )
    prompt_words: Count = Field(default=13, description="of such a sequence")

    @model_validator(mode="after")
    def _few_hashes(self) -> Dedup:
        if self.bands * self.band_rows > _HASHES:
            raise ValueError(f"bands times band_rows is above {_HASHES:,} hashes for a document")
        return self

    def check(self) -> None:
        """Raise InputError where datasketch or a file of prompts is missing."""
        if self.near and importlib.util.find_spec("datasketch") is None:
            raise InputError("near duplicates need datasketch: pip install datasketch.")
        for path in self.prompts:
            if not Path(path).is_file():
                raise InputError(f"there is no file {path}.")

    def inputs(self) -> list[str]:
        """The files of prompts."""
        return self.prompts

    def run(self, documents: Iterator[Document], context: Context) -> Iterator[Document]:
        """The first document of each group of duplicates."""
        known = self._prompt_grams()
        statistics = context.statistics
        with (
            DiskTable(context.temporary("exact")) as texts,
            DiskTable(context.temporary("bands")) as bands,
            _Signatures(context.temporary("signatures"), self.bands * self.band_rows) as signatures,
        ):
            for document in documents:
                words = _WORD.findall(document.text.lower())
                if known and not known.isdisjoint(_grams(words, self.prompt_words)):
                    statistics.drop("holds an evaluation prompt")
                    continue
                if self.exact:
                    digest = xxhash.xxh3_128(
                        " ".join(document.text.lower().split()).encode()
                    ).digest()
                    if not texts.add_new(digest):
                        statistics.drop("exact duplicate")
                        continue
                if self.near and len(words) >= self.words:
                    signature = self._signature(words)
                    similarity = self._similarity(signature, bands, signatures)
                    if similarity >= self.similarity:
                        statistics.score("similarity of near duplicates", similarity)
                        statistics.drop("near duplicate")
                        continue
                yield document

    def _prompt_grams(self) -> set[int]:
        grams: set[int] = set()
        for path in self.prompts:
            for text in prompt_texts(Path(path)):
                grams.update(_grams(_WORD.findall(text.lower()), self.prompt_words))
        return grams

    def _signature(self, words: list[str]) -> NDArray[np.uint32]:
        from datasketch import MinHash

        empty = _empty(self.bands * self.band_rows)
        result = MinHash(
            empty.num_perm, seed=_SEED, hashfunc=xxhash.xxh32_intdigest,
            permutations=empty.permutations, scheme=empty.scheme,
        )  # fmt: skip
        count = len(words) - self.words + 1
        for start in range(0, count, _BATCH):
            stop = min(start + _BATCH, count)
            grams = [" ".join(words[i : i + self.words]).encode() for i in range(start, stop)]
            result.update_batch(grams)
        return np.asarray(result.hashvalues).astype(np.uint32)

    def _similarity(
        self, signature: NDArray[np.uint32], bands: DiskTable, signatures: _Signatures
    ) -> float:
        """The greatest similarity to a document in one of the same buckets. Where it is below the
        limit, the document is added to its buckets."""
        data = signature.tobytes()
        size = self.band_rows * signature.itemsize
        keys = [
            xxhash.xxh3_64(number.to_bytes(4, "little") + data[number * size : (number + 1) * size])
            .digest()
            for number in range(self.bands)
        ]  # fmt: skip
        best = 0.0
        for number in sorted({number for key in keys for number in bands.values(key)}):
            shared = signatures.read(int.from_bytes(number)) == signature
            best = max(best, float(shared.mean()))
            if best >= self.similarity:
                return best
        number = signatures.add(signature).to_bytes(8)
        bands.add([(key, number) for key in keys])
        return best


class _Signatures:
    """Signatures of `size` values by number, in a temporary file that is removed at the end of the
    block."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._bytes, self._count = path, size * 4, 0
        with writing(path):
            self._file = path.open("w+b")

    def add(self, signature: NDArray[np.uint32]) -> int:
        """The number of a signature that is added. Raises OutputError where the disk refuses."""
        with writing(self._path):
            self._file.seek(self._count * self._bytes)
            self._file.write(signature.tobytes())
        self._count += 1
        return self._count - 1

    def read(self, number: int) -> NDArray[np.uint32]:
        """The signature of a number."""
        with writing(self._path):  # of those that were not written yet
            self._file.seek(number * self._bytes)
            return np.frombuffer(self._file.read(self._bytes), np.uint32)

    def __enter__(self) -> _Signatures:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk, of what is thrown away
            self._file.close()
        self._path.unlink(missing_ok=True)


@lru_cache
def _empty(count: int) -> Any:
    """A MinHash of `count` values, whose random numbers are drawn once."""
    from datasketch import MinHash

    return MinHash(count, seed=_SEED)


def _grams(words: list[str], size: int) -> Iterator[int]:
    """A hash of every sequence of `size` words."""
    for i in range(len(words) - size + 1):
        yield xxhash.xxh3_64_intdigest(" ".join(words[i : i + size]).encode())
