"""Check whether a command may write or replace an output, before its work and before publishing.

An output must not overlap an input in either direction. It may only replace an earlier output
whose files are all as regraft wrote them (see `manifest`). An output that is a single file (GGUF)
names its record among its first bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from regraft.checkpoint.write.manifest import MANIFEST, foreign_files, read_manifest
from regraft.errors import InputError, reading, writing

FILE_MARK = b"regraft.record"  # among the first bytes of a single file that regraft wrote
_MARK_WITHIN = 4096  # bytes


def resolve_target(out: str | Path) -> Path:
    """The absolute path of an output folder. Raises InputError where it cannot be one."""
    text = str(out)
    if not text or "\0" in text:
        raise InputError("The name of the output folder (-o) is empty or not a name; give another.")
    target = Path(out).expanduser().resolve()
    if not target.name:
        raise InputError(f"The output {out} is not a folder that can be replaced.")
    current = Path.cwd()
    if target == current or target in current.parents:
        raise InputError(
            f"The output {target} holds the current folder; choose a new folder, such as "
            f"-o {current.name}-out."
        )
    return target


def staging_folder(target: Path) -> Path:
    """The hidden folder beside the target in which the output is made."""
    return target.with_name(f".{target.name}.regraft-staging")


def replaced_folder(target: Path) -> Path:
    """Where an earlier output is moved while the new one takes its place."""
    return target.with_name(f".{target.name}.regraft-replaced")


def check_target(
    out: str | Path,
    *,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
    is_file: bool = False,
) -> Path:
    """The absolute path of an output that may be written: a folder, or one file with `is_file`.

    Raises InputError if it overlaps an input, holds files and `overwrite` is not given, holds files
    that regraft did not write, or lies where no folder can be made.
    """
    target = resolve_target(out)
    check_overlap(target, inputs)
    check_replaceable(target, overwrite, is_file=is_file)
    _check_parent(target)
    return target


def check_overlap(target: Path, inputs: Iterable[str | Path]) -> None:
    """Raise InputError if the target or its staging folder holds an input or lies in one.

    An input that does not exist is a Hub id. Symbolic links in an input folder are followed: what
    they point to is read, too.
    """
    written = (target, staging_folder(target), replaced_folder(target))
    for source in inputs:
        path = Path(source).expanduser()
        with reading(path):
            if not path.exists():
                continue
            real_paths = list(_real_paths(path))
        for real in real_paths:
            if any(w == real or real in w.parents or w in real.parents for w in written):
                raise InputError(
                    f"The output {target} overlaps the input {source}; choose a folder outside it."
                )


def check_replaceable(target: Path, overwrite: bool, *, is_file: bool = False) -> None:
    """Raise InputError unless the target is free, or an earlier output that may be replaced."""
    if is_file:
        _check_replaceable_file(target, overwrite)
        return
    with writing(target):
        if target.exists() and not target.is_dir():
            raise InputError(f"The output {target} is a file; choose a folder.")
        if not target.is_dir() or not any(target.iterdir()):
            return
        if not overwrite:
            raise InputError(
                f"The output folder {target} is not empty; choose another or replace it with "
                "--overwrite."
            )
        if read_manifest(target) is None:
            raise InputError(
                f"The output folder {target} is not one that regraft wrote (it has no {MANIFEST}), "
                "so --overwrite does not replace it; choose another folder or empty it."
            )
        if foreign := foreign_files(target):
            others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise InputError(
                f"The output folder {target} holds files that regraft did not write or that were "
                f"changed since ({foreign[0]}{others}), so --overwrite does not replace it; move "
                "them away or choose another folder."
            )


def is_marked_file(path: Path) -> bool:
    """Whether a path is a single file that regraft wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return FILE_MARK in file.read(_MARK_WITHIN)


def _check_replaceable_file(target: Path, overwrite: bool) -> None:
    with writing(target):
        if target.is_dir():
            raise InputError(f"The output {target} is a folder; give the name of a file.")
        if not os.path.lexists(target):
            return
        if not overwrite:
            raise InputError(
                f"The output {target} exists; choose another name or replace it with --overwrite."
            )
        if not is_marked_file(target):
            raise InputError(
                f"The output {target} is not a file that regraft wrote, so --overwrite does not "
                "replace it; choose another name or move it away."
            )


def _check_parent(target: Path) -> None:
    """Raise InputError where the target's parent cannot be made or written to."""
    for folder in target.parents:
        if not os.path.lexists(folder):
            continue
        if not folder.is_dir():
            raise InputError(
                f"The output {target} cannot be made, since {folder} is a file; choose another "
                "folder."
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(
                f"The output {target} cannot be made, since {folder} may not be written to; choose "
                "another folder."
            )
        return


def _real_paths(path: Path) -> Iterator[Path]:
    yield Path(os.path.realpath(path))  # a loop of links is no error here
    if path.is_dir():
        for parent, subfolders, names in os.walk(path):
            for name in (*subfolders, *names):
                if (Path(parent) / name).is_symlink():
                    yield Path(os.path.realpath(Path(parent) / name))
