"""The licence that the card of each input states."""

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
    """What the card of a model says."""

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
    """The licence that all stated ones are, 'other' where they differ, None where none is."""
    stated = {one.licence for one in licences} - {NOT_STATED}
    if not stated:
        return None
    return stated.pop() if len(stated) == 1 else "other"


def _stated(card: str) -> str:
    """`license` of the front matter of a model card."""
    if not card.startswith("---\n"):
        return NOT_STATED
    try:
        facts = yaml.safe_load(card[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return NOT_STATED
    if not isinstance(facts, dict):
        return NOT_STATED
    stated = facts.get("license_name") if facts.get("license") == "other" else facts.get("license")
    return stated if isinstance(stated, str) and stated else NOT_STATED
