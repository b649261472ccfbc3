"""The notebook of the examples runs cell by cell in this process, and is stored without results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from printed import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "graft.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_ten_cells_and_no_results():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len(NOTEBOOK["cells"]) == 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


def test_the_notebook_ends_with_the_page(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo-out").symlink_to(toys / "demo-out")
    (tmp_path / "out").mkdir()
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        code = "".join(cell["source"])
        for full, toy in (('"items": 50', '"items": 2'), ("64,256", "64,128"), ("[4, 16]", "[4]")):
            code = code.replace(full, toy)
        exec(compile(code, f"cell {number + 2}", "exec"), names)
    page = tmp_path / "out" / "notebook" / "job" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == page.resolve().as_uri()
    assert "Long context grafted on target" in page.read_text()
