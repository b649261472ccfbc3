"""The report's page in a real browser: Chromium opens it, and a script presses what can be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated import evaluate, text_tokenizer, toy
from models import LLAMA, LONG, save, weights

from regraft.evaluate.report.page import write_page
from regraft.evaluate.result import read_result

# What a visitor does; the page's state after each step is left in #seen as JSON.
VISIT = """
<pre id="seen"></pre>
<script>
const seen = {errors: []};
window.onerror = (message) => { seen.errors.push(message); };
const buttons = [...document.querySelectorAll("button[data-line]")];
const hidden = () => [...document.querySelectorAll("g[data-line]")]
  .filter(line => getComputedStyle(line).display === "none").map(line => line.dataset.line);
const pressed = () => buttons.map(button => button.getAttribute("aria-pressed"));
seen.before = [hidden(), pressed()];
if (buttons.length > 1) {
  buttons[1].click(); seen.once = [hidden(), pressed()];
  buttons[1].click(); seen.twice = [hidden(), pressed()];
}
const marks = ["circle", "td"].map(kind => document.querySelector(`${kind}[data-description]`));
seen.said = marks.filter(Boolean).map(mark => {
  mark.dispatchEvent(new MouseEvent("mouseenter"));
  return [mark.dataset.description, document.getElementById("description").textContent];
});
for (const summary of document.querySelectorAll("summary")) summary.click();
seen.prompts = [...document.querySelectorAll("details[open] pre")].map(p => p.offsetHeight > 0);
seen.wider = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.title = document.title;
// without this script
seen.elements = [document.scripts.length - 1, document.images.length,
  document.querySelectorAll("b").length];
seen.text = (document.querySelector("details[open] pre") || {}).textContent;
document.getElementById("seen").textContent = JSON.stringify(seen);
</script>
"""


def visit(page: Path, profile: Path) -> dict[str, list | str | bool]:
    """Open the page, do all of the above, say what was seen."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine: the page was read, but no button was pressed")
    visited = page.with_name("visited.html")
    visited.write_text(page.read_text().replace("</body>", VISIT + "</body>"))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=900,1200", f"--user-data-dir={profile}", "--dump-dom",
        f"file://{visited}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    result = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)
    assert result, dom[-2000:]
    return json.loads(result[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


def test_lines_hide_and_come_back_points_speak_and_samples_open(tmp_path: Path) -> None:
    models = [
        f"{name}={toy(tmp_path / name, seed=seed, **config)}"
        for seed, (name, config) in enumerate(
            {"recipient": {}, "donor": LONG, "graft": LONG}.items()
        )
    ]
    out = tmp_path / "out"
    evaluate(
        models, out, matrix=True, suite="toy", lengths="64,128", haystack="world", items=4, texts=2
    )
    page = (out / "index.html").read_text()
    assert not re.search(r"(src|href|url)\s*[=(]", page)
    assert "http" not in page
    assert page.count("<polyline") == 8
    assert page.count("<circle") == 16
    assert page.count("<details>") == 2
    seen = visit(out / "index.html", tmp_path / "profile")
    assert seen["errors"] == []
    assert seen["before"] == seen["twice"] == [[], ["true"] * 4]
    assert seen["once"] == [["1", "1"], ["true", "false", "true", "true"]]
    ((marked, said),) = seen["said"]
    assert said == marked
    assert said.startswith("recipient")
    assert seen["prompts"] == [True] * 4
    assert not seen["wider"]


def test_cells_of_a_needle_grid_speak(tmp_path: Path) -> None:
    config = {**LLAMA, "vocab_size": 600, "max_position_embeddings": 512}
    folder = save(tmp_path / "model", config, weights(config))
    text_tokenizer().save_pretrained(folder)
    out = tmp_path / "out"
    evaluate([f"model={folder}"], out, suite="needle", lengths="256,512", items=4, depths=3)
    seen = visit(out / "index.html", tmp_path / "profile")
    assert seen["errors"] == []
    _, (marked, said) = seen["said"]
    assert said == marked
    assert "depth 0%" in said


def test_hostile_texts_run_no_script_and_do_not_widen_the_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(
        [f"<b>m={toy(tmp_path / 'm', **LONG)}"], out, suite="toy", lengths="64", haystack="world",
        items=2, texts=1,
    )  # fmt: skip
    result = read_result(out)
    hostile = (
        "</pre></details><script>document.title = 'taken'</script><img src=x onerror=\"document."
        "title='taken'\">\x00\x1b[31m\u202egnp\ud800{{ 7 * 7 }}" + "W" * 30_000
    )
    samples = [
        replace(
            sample, prompt=hostile, twin=hostile, references=[hostile[:90]],
            answers={"<b>m": replace(sample.answers["<b>m"], said=hostile)},
        )
        for sample in result.samples
    ]  # fmt: skip
    page = tmp_path / "hostile.html"
    write_page(page, replace(result, samples=samples))
    seen = visit(page, tmp_path / "profile")
    assert seen["errors"] == []
    assert seen["title"] == "What the models can do"
    assert seen["elements"] == [1, 0, 0]  # of the page's own; nothing came in with a text
    assert seen["prompts"] == [True] * 2 * len(samples)
    assert "{{ 7 * 7 }}" in str(seen["text"])
    assert not seen["wider"]
