"""The errors regraft raises on purpose.

Each message is one sentence that says what is wrong, where (file, tensor, line) and what to do.
The command line prints it without a traceback and exits with the class's `exit_code`.
"""

from __future__ import annotations


class RegraftError(Exception):
    """Something regraft found out and can explain. `exit_code` is what the command returns."""

    exit_code = 1


class InputError(RegraftError):
    """The user's input or arguments are wrong: nothing was written, exit code 2."""

    exit_code = 2


class CheckpointError(InputError):
    """A model or adapter folder is broken or not what it was taken for."""


class LineageError(InputError):
    """An adapter and a checkpoint are not relatives (or their RoPE differs without a policy)."""


class OutputError(RegraftError):
    """The output could not be written: a full disk, no permission. Exit code 1, staging is kept."""
