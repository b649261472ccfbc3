"""Reads the licence of each input from its card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from regraft.adapters.reader import Adapter
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.input_files import read_text

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Licence:
    """The licence that the card of a model states."""

    model: str
    licence: str


def licence_of(source: str, *, adapter: bool) -> Licence:
    """The licence of a model or adapter: a folder or Hub id."""
    try:
        if adapter:
            path = Adapter.open(source).folder / "README.md"
            text = read_text(path) if path.is_file() else ""
        else:
            with Checkpoint.open(source) as checkpoint:
                readme = checkpoint.file("README.md")
                text = read_text(readme) if readme is not None else ""
    except InputError:
        text = ""
    return Licence(source, _stated(text))


def common_licence(licences: Iterable[Licence]) -> str | None:
    """The stated licence of all, 'other' where they differ, None where none is stated."""
    stated = {licence.licence for licence in licences} - {NOT_STATED}
    if not stated:
        return None
    return stated.pop() if len(stated) == 1 else "other"


def _stated(card: str) -> str:
    """`license` of the front matter of a model card."""
    if not card.startswith("---\n"):
        return NOT_STATED
    try:
        front_matter = yaml.safe_load(card[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return NOT_STATED
    if not isinstance(front_matter, dict):
        return NOT_STATED
    stated = front_matter.get("license")
    if stated == "other":
        stated = front_matter.get("license_name")
    return stated if isinstance(stated, str) and stated else NOT_STATED
