"""What MkDocs does with the pages of this folder: see `hooks` in mkdocs.yml.

Generated pages are added (`generate/`). In a page, a comment `<!-- docstring: MODULE -->` is
replaced by the docstring of that module, and links to files outside this folder lead to the pages
that show them.
"""

from __future__ import annotations

import os
import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from generate import PAGES, benchmarks, examples
from generate.text import docstring, paragraphs
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_DOCSTRING = re.compile(r"<!-- docstring: ([\w.]+) -->")
_RESULT = re.compile(r"\]\((?:\.\./)+benchmarks/results/(\w+)\.md\)")
_EXAMPLE = re.compile(r"\]\((?:\.\./)+examples/([\w-]+\.yaml)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the figures that they show."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    for figure in benchmarks.RESULTS.glob("*.png"):
        path = f"benchmarks/{figure.name}"
        files.append(File.generated(config, path, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert docstrings and point links into the site."""
    here = posixpath.dirname(page.file.src_uri)

    def to(address: str) -> str:
        return f"]({posixpath.relpath(address, here or '.')})"

    markdown = _DOCSTRING.sub(
        lambda match: paragraphs(docstring(import_module(match[1]), match[1])), markdown
    )
    markdown = _RESULT.sub(lambda match: to(benchmarks.link(match[1])), markdown)
    return _EXAMPLE.sub(lambda match: to(examples.link(match[1])), markdown)
