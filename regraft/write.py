"""Writes small files of an output; errors name the file.

On a full disk Python raises an OSError without a file name; `regraft.errors.writing` adds it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.errors import OutputError, os_error_sentence, writing


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; surrogates, as in an undecodable file name, become '?'.

    Raises OutputError naming the file.
    """
    with writing(path):
        path.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, which has no NaN. Raises OutputError naming the file."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON that ends in a newline. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def library_writing(path: Path) -> Iterator[None]:
    """`writing` for safetensors and tokenizers, whose own exceptions say '(os error 28)'."""
    try:
        with writing(path):
            yield
    except OutputError:
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        cause = OSError(int(number[1]), os.strerror(int(number[1])))
        raise OutputError(os_error_sentence(cause, path)) from error


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's bytes. Raises OutputError naming the copy."""
    with writing(path):
        shutil.copyfile(source, path)
