"""The errors that regraft raises on purpose, and helpers for their messages.

Each message is one sentence that says what is wrong, where (file, tensor, line) and what to do.
The command line prints it without a traceback and exits with the class's `exit_code`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RegraftError(Exception):
    """An error that regraft can explain. `exit_code` is what the command returns."""

    exit_code = 1


class InputError(RegraftError):
    """The user's input or arguments are wrong: nothing was written, exit code 2."""

    exit_code = 2


class CheckpointError(InputError):
    """A model or adapter folder is broken, or of another kind than expected."""


class LineageError(InputError):
    """An adapter and a checkpoint are unrelated, or their RoPE differs and no policy is given."""


class OutputError(RegraftError):
    """The output could not be written: a full disk, no permission. Exit code 1, staging is kept."""


_REMEDIES = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "your disk quota is used up; make room",
    errno.EFBIG: "the file system cannot hold a file this large; choose another disk",
    errno.EACCES: "permission is denied; choose a folder that you may write to",
    errno.EPERM: "permission is denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; choose another",
    errno.EEXIST: "a part of the path is a file; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def os_error_sentence(error: OSError, path: str | Path | None, verb: str = "write") -> str:
    """An error of the operating system as a sentence with what to do.

    Such as 'Cannot write out/config.json: the disk is full; make room.' verb: what was tried.
    """
    subject = f"Cannot {verb} {path}" if path else "The system refused"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{subject}: {_REMEDIES.get(error.errno or 0, f'{reason}; check the disk')}."


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raise an OSError of the block as an OutputError that names `path` and the remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(os_error_sentence(error, path)) from error


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Raise an OSError of the block as an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Cannot read {path}: {reason}; give a readable file.") from error


def closest_name(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` is most likely a misspelling of, or None."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest known name, or '' if none is close."""
    name = closest_name(word, known)
    return f" (did you mean {name}?)" if name else ""


def short_repr(value: object) -> str:
    """The repr of a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
