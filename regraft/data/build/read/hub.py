"""Files of a Hub dataset, read where they are: only the bytes that are needed are transferred.

`datasets` says which files a split has, from the dataset's card or their names, of which commit;
`HfFileSystem` reads ranges of them. Nothing is left on disk but the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from regraft.data.sources import open_parquet
from regraft.errors import InputError

_START = "hf://datasets/"
_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json")
_READ_AHEAD = 4 << 20  # bytes, of lines


@dataclass(frozen=True)
class HubFile:
    """path: 'hf://datasets/org/name@COMMIT/FILE'. size: bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class HubSplit:
    """The files of a split, in the order of the dataset. revision: the commit they are of."""

    revision: str
    files: Sequence[HubFile]


def hub_split(location: str, subset: str | None, split: str) -> HubSplit:
    """The files of a split of the dataset org/name[@revision].

    Raises InputError where there is no such dataset, subset or split, and where its files are
    neither Parquet nor JSON lines.
    """
    try:
        import datasets
    except ImportError:
        raise InputError("A Hub dataset needs datasets: pip install datasets.") from None
    name, _, revision = location.partition("@")
    with _transfer(f"The dataset {location}", "check its name, `subset`, revision and the network"):
        builder = datasets.load_dataset_builder(name, subset, revision=revision or None)
        parts = {str(key): list(paths) for key, paths in (builder.config.data_files or {}).items()}
        if split not in parts:
            known = ", ".join(parts) or "none"
            raise InputError(f"The dataset {location} has no split '{split}'; it has {known}.")
        start = f"{_START}{name}@{builder.hash}/"
        for path in parts[split]:
            if not path.startswith(start) or not path.lower().endswith(_ENDINGS):
                raise InputError(
                    f"The dataset {location} has {path.removeprefix(start)}, and only its own "
                    "Parquet files and JSON lines are streamed; give its conversion as "
                    f"{name}@refs/convert/parquet, or download and convert it."
                )
        sizes = [_file_system().info(path)["size"] for path in parts[split]]
    files = [HubFile(path, size) for path, size in zip(parts[split], sizes, strict=True)]
    return HubSplit(builder.hash, files)


def is_hub(path: str) -> bool:
    """Whether a path is that of a file of the Hub."""
    return path.startswith(_START)


def name_of(path: str) -> str:
    """The name of a file in its dataset, which may have no organisation, such as `squad`."""
    return path.partition("@")[2].partition("/")[2]


def open_hub_file(path: str, *, in_order: bool) -> Any:
    """A binary file that reads ranges. in_order: read ahead, as for lines."""
    with reading_hub(path):
        cache = {"cache_type": "readahead", "block_size": _READ_AHEAD}
        return _file_system().open(path, "rb", **(cache if in_order else {"cache_type": "none"}))


@lru_cache(maxsize=1)  # pieces of a file are read one after another
def open_hub_parquet(path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` of a file of the Hub."""
    with reading_hub(path):
        return open_parquet(path, open_hub_file(path, in_order=False))


@contextmanager
def reading_hub(path: str) -> Iterator[None]:
    """Raise an error of the transfer in the block as an InputError that names the file."""
    with _transfer(path, "check the network and continue with --resume"):
        yield


@contextmanager
def _transfer(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any library between here and the Hub
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{what} cannot be read ({type(error).__name__}: {reason}); {remedy}."
        ) from error


@cache
def _file_system() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()
