"""Check whether a command may write or replace a folder, before its work and before publishing.

An output must not overlap an input in either direction. It may only replace an earlier output
whose files are all as regraft wrote them (see `manifest`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from regraft.checkpoint.write.manifest import MANIFEST, foreign_files, read_manifest
from regraft.errors import InputError, reading, writing


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
    out: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()
) -> Path:
    """The absolute path of an output folder that may be written.

    Raises InputError if it overlaps an input, holds files and `overwrite` is not given, holds files
    that regraft did not write, or lies where no folder can be made.
    """
    target = resolve_target(out)
    check_overlap(target, inputs)
    check_replaceable(target, overwrite)
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


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Raise InputError unless the target is free, or an earlier output that may be replaced."""
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
