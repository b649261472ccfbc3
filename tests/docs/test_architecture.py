"""The page on the architecture names what is there, and its picture is that of the contract."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "regraft"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", PAGE)


def test_every_path_on_the_page_exists():
    paths = [code for code in CODE if re.fullmatch(r"[\w/]+\.py|[\w/]+/", code)]
    assert len(paths) > 60
    local = ("extract/", "apply/", "inspect/", "methods/", "recipe/", "step/", "estimate/",
             "output/", "inputs/", "native/", "files/", "tasks/", "prompts/", "answers/", "local/",
             "report/", "read/", "write/", "hf/", "stages/")  # fmt: skip
    for path in paths:
        if path in local:
            assert list(PACKAGE.glob(f"*/{path}")), path
        elif "/" in path.rstrip("/") or path.endswith("/"):
            assert (PACKAGE / path.removeprefix("regraft/")).exists(), path
        else:
            assert list(PACKAGE.rglob(path)), path


def test_every_folder_and_top_file_of_the_package_has_its_words():
    for entry in PACKAGE.iterdir():
        if entry.name.startswith("_") or entry.name == "py.typed":
            continue
        assert f"`{entry.name}{'/' if entry.is_dir() else ''}`" in PAGE, entry.name


def test_a_walk_passes_only_files_that_it_names_in_full():
    walks = PAGE.split("## Six walks")[1]
    assert len(re.findall(r"^\*\*An? .*\*\*", walks, re.M)) == 6
    named = re.findall(r"`([^`\n]+\.py)`", walks)
    for path in named:
        assert (PACKAGE / path).is_file(), path


def test_the_picture_is_drawn_from_the_present_contract():
    """Else run `python docs/draw_floors.py`."""
    spec = importlib.util.spec_from_file_location("floors", ROOT / "docs" / "draw_floors.py")
    assert spec is not None
    assert spec.loader is not None
    floors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(floors)
    assert floors.TARGET.read_text(encoding="utf-8") == floors.svg()
    drawn = {name for layer in floors.layers() for name in layer}
    entries = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith(("_", "py."))}
    assert drawn == entries
