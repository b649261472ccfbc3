"""Card and page of a job: what was grafted on what, figures, commands, licences, the recipe."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import yaml
from cards import assert_tables_are_whole
from evaluated import toy
from models import LLAMA, LONG, changed, load, save

from regraft.checkpoint.read.source import Checkpoint
from regraft.data.toy_language import write_tokenizer
from regraft.graft.job import graft_model
from regraft.graft.record import JobRecord, StageRecord
from regraft.graft.report.page import write_pages
from regraft.records import ModelRecord, write_record
from regraft.rope import ContextSpec
from regraft.train.record import LossPair, SourceLoss, TrainingContext, TrainingRecord

RECIPE = """\
base: base
extended: extended
targets: [one, {name: second, model: two}]
ranks: [2, 4]
evaluate: {suite: toy, haystack: world, items: 2, lengths: [64, 128]}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two targets."""
    folder = tmp_path_factory.mktemp("report")
    toy(folder / "base", max_position_embeddings=64)
    config = json.loads((folder / "base/config.json").read_text())
    for name, rank, seed, more in (("extended", 4, 1, LONG), ("one", None, 2, {}),
                                   ("two", None, 3, {})):  # fmt: skip
        state = changed(load(folder / "base"), rank=rank, size=0.1, seed=seed)
        save(folder / name, {**config, **more}, state)
        write_tokenizer(folder / name)
    (folder / "base/README.md").write_text("---\nlicense: llama3\n---\n# base\n")
    (folder / "one/README.md").write_text("---\nlicense: apache-2.0\n---\n# one\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        graft_model("recipe.yaml", "out")
    return folder / "out"


def test_the_packaged_model_is_the_graft_with_tokenizer_card_and_evidence(job: Path) -> None:
    made, graft = load(job / "models/one"), load(job / "grafts/one")
    assert all(made[name].equal(tensor) for name, tensor in graft.items())
    for name in ("config.json", "tokenizer.json", "regraft.json", "README.md", "sweep.png"):
        assert (job / "models/one" / name).is_file(), name
    with Checkpoint.open(job / "models/one") as model:
        assert model.config["max_position_embeddings"] == 2048


def test_the_card_says_what_a_reader_needs(job: Path) -> None:
    card = (job / "models/one/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "other"  # llama3 and apache-2.0
    for words in (
        "one with what extended learned over base grafted on (rank ",
        "On a fixed prompt of 32 tokens the largest change of a logit is ",
        "| base | llama3 |", "| extended | not stated |", "| one | apache-2.0 |",
        'AutoModelForCausalLM.from_pretrained("one"', "vllm serve one --max-model-len 2048",
        "llama-server -m one.gguf -c 2048", "retention is n/a", "### Carried over: notes",
        "Next: items 50 or more.",  # a key of the recipe, not an option of regraft evaluate
    ):  # fmt: skip
        assert words in card, words
    assert RECIPE in card
    assert_tables_are_whole(card)
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert (job / "models/one" / figure).read_bytes().startswith(b"\x89PNG")


def test_the_page_has_every_target_and_needs_no_other_file(job: Path) -> None:
    page = html.unescape((job / "index.html").read_text())
    for words in (
        "Long context grafted on one, second", "<h2>one</h2>", "<h2>second</h2>",
        "two with what extended learned over base grafted on", RECIPE.strip(), "<polyline",
        "data:image/png;base64,", "<td>extract/rank-2</td>", "vllm serve out/models/second",
        "Carried over: notes", "Next: items 50 or more.",
    ):  # fmt: skip
        assert words in page, words
    assert not re.search(r'(src|href)="https?:', page)
    for link in re.findall(r'href="([^"]+)"', page):
        assert (job / link).is_file()
    readme = (job / "README.md").read_text()
    assert "| second | rank " in readme


def test_the_page_has_the_losses_of_the_sources_of_finished_trainings(tmp_path: Path) -> None:
    context = ContextSpec.from_config({**LLAMA, "max_position_embeddings": 8192}).to_record()
    books = SourceLoss(
        share=0.6, suggested_share=0.569,
        within=LossPair(tokens=61_440, before=2.412, after=2.398),
        beyond=LossPair(tokens=430_080, before=6.93, after=2.301),
    )  # fmt: skip
    training = TrainingRecord(
        export="model", recipe={}, base=ModelRecord(name="base", revision=None, fingerprint="0"),
        context=TrainingContext(base=context, stages=[context]), text={}, steps=1, stage_steps=[1],
        tokens=1, abandoned=[], stopped={}, loss=None, drift=[], watch=None,
        sources={"books": books}, processes="1", versions={},
    )  # fmt: skip
    stages = []
    for name, key in (("recover", "1"), ("extend", None)):  # the second one is not finished
        (tmp_path / name).mkdir()
        write_record(tmp_path / name / "train.json", training)
        stages.append(StageRecord(name=f"{name}/one", out=name, key=key))
    write_pages(tmp_path, JobRecord(recipe="", stages=stages, targets={}, versions={}))
    page = (tmp_path / "index.html").read_text()
    losses_section = page[page.index("<h2>Losses of the sources") : page.index("<h2>Stages</h2>")]
    cells = re.findall("<td.*?>(.*?)</td>", losses_section)
    assert cells == [
        "recover/one", "books",
        "2.412 -&gt; 2.398 within 8k (61,440 tokens), 6.930 -&gt; 2.301 beyond (430,080 tokens); "
        "60.0% of the training, 56.9% suggested",
    ]  # fmt: skip
