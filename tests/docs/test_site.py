"""The site builds without a warning; its generated pages leave nothing without a description."""

from __future__ import annotations

import re

import generate
import pytest
from generate import benchmarks
from generate.commands import every_command
from generate.text import MissingDescription, described
from printed import PAGES, ROOT

import regraft
from regraft.merge.methods.registry import names


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The generated pages; a missing description raises here."""
    return {path: page() for path, page in generate.PAGES.items()}


def test_every_command_option_function_and_method_is_in_the_reference(pages):
    for name, command in every_command().items():
        section = pages["reference/cli.md"].split(f"\n## regraft {name}\n")[1].split("\n## ")[0]
        assert "```bash" in section
        for option in command.params:
            assert option.name == "help" or f"`{option.opts[0]}`" in section or (
                f"`{option.name.upper()}`" in section), (name, option.name)  # fmt: skip
    for name in set(regraft.__all__) - {"__version__"}:
        assert f"\n## {name}\n" in pages["reference/python.md"]
    for name in names():
        assert f"\n## {name}\n" in pages["reference/merge-methods.md"]


def test_every_key_of_a_recipe_has_type_and_meaning(pages):
    for page in ("train", "data", "merge", "graft", "evaluate"):
        rows = re.findall(r"^\| `.*$", pages[f"reference/{page}.md"], re.M)
        assert rows
        for row in rows:
            cells = re.split(r"(?<!\\)\|", row)
            assert len(cells) == 6, row
            assert cells[2].strip(), row
            assert cells[4].strip(), row


def test_a_missing_description_is_an_error():
    with pytest.raises(MissingDescription, match="regraft apply scale has no description"):
        described("  ", "regraft apply scale")


def test_every_result_of_a_benchmark_is_on_the_page(pages):
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert f"\n## {benchmarks.heading(path.stem)}\n" in pages["benchmarks.md"]


def test_the_site_builds_without_warnings(tmp_path, monkeypatch, pages):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.setattr(generate, "PAGES", {path: lambda t=text: t for path, text in pages.items()})
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    html = (tmp_path / "site" / "explanation" / "extraction.html").read_text()
    assert "Halko" in html
    assert "docstring:" not in html


def test_links_from_the_readme_lead_somewhere():
    for page in PAGES[:2]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (ROOT / target).exists(), target
