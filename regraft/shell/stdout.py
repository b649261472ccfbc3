"""Standard output: it holds only a command's result, and it may be full or closed."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from regraft.errors import OutputError


@contextmanager
def prints_go_to_stderr() -> Iterator[None]:
    """Send what libraries print in the block to standard error, also from C or Rust.

    tokenizers 0.22, for example, prints which keys of a special token it ignores.
    """
    try:
        stdout = os.dup(1)
    except OSError:  # closed
        yield
        return
    try:
        _flush()
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        _flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()


def write_stdout(text: str) -> None:
    """Write to standard output and flush it.

    Raises OutputError where the device is full or the reader has closed the pipe.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(text)
    except (OSError, ValueError) as error:
        discard_stdout()
        raise _stdout_error(error) from None
    flush_stdout()


def flush_stdout() -> None:
    """Flush standard output. Raises OutputError where that fails."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        discard_stdout()
        raise _stdout_error(error) from None


def _stdout_error(error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or error
    return OutputError(
        f"The result cannot be written to standard output ({reason}); a folder that was written "
        "(-o) is complete."
    )


def discard_stdout() -> None:
    """Send buffered output to /dev/null, since flushing it at exit would fail again."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
