"""The whole examination: scores against direct computation, ratios, killed runs, bad input."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import evaluate, text_tokenizer
from models import LLAMA, LONG, contents, save, weights
from typer.testing import CliRunner

from regraft.cli import app
from regraft.data.toy_language import prose_row
from regraft.errors import CheckpointError, InputError
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.job import text_files
from regraft.evaluate.measures import Measurer
from regraft.evaluate.result import read_result
from regraft.evaluate.settings import Settings
from regraft.records import dump_json

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"haystack": "world", "items": 6, "texts": 2}
MATRIX = "toy,perplexity,drift"


def named(folders: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in folders.items()]


def test_matrix_shows_every_model_the_same_prompts(
    folders: dict[str, Path], tmp_path: Path, rendered: None
) -> None:
    out = tmp_path / "out"
    result = evaluate(named(folders), out, matrix=True, suite=MATRIX, lengths="64,128", **QUICK)
    models = ["recipient", "theta only", "donor", "graft"]
    assert list(result["models"]) == list(result["cells"]) == models
    assert result == json.loads(dump_json(read_result(out)))
    assert set(result["cells"]["graft"]) == {"notes", "shout"}
    hashes_by_model = [
        [json.loads(line)["hash"] for line in (out / "items" / name / "notes-64.jsonl").open()]
        for name in ("recipient", "theta-only", "donor", "graft")
    ]
    assert len(set(hashes_by_model[0])) == 6
    assert all(hashes == hashes_by_model[0] for hashes in hashes_by_model)
    nll = [result["cells"][name]["notes"]["128"]["nll"] for name in models]
    assert len(set(nll)) == 4
    drifts = [result["measures"][name]["drift"]["kl"] for name in models]
    assert drifts[0] < 1e-6 < min(drifts[2:])
    assert result["models"]["theta only"]["context"] == result["models"]["donor"]["context"]
    assert result["ratios"]["notes"]["64"]["transfer graft"] is None  # random models know nothing
    assert "transfer graft" not in result["ratios"]["shout"]["64"]
    card, page = (out / "README.md").read_text(), (out / "index.html").read_text()
    assert "n/a" in card
    assert "n/a" in page
    assert (out / "curves.png").stat().st_size > 5000


def test_theta_only_is_the_recipients_weights_under_the_donors_rope(
    folders: dict[str, Path],
) -> None:
    context = Source("d", str(folders["donor"])).spec()
    alone = Source("t", str(folders["recipient"]), context).load(CPU)
    recipient = Source("r", str(folders["recipient"])).load(CPU)
    for (name, ours), theirs in zip(
        alone.model.named_parameters(), recipient.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert alone.model.config.rope_parameters["rope_theta"] == LONG["rope_theta"]
    assert alone.model.config.max_position_embeddings == LONG["max_position_embeddings"]


def test_a_killed_run_goes_on_and_ends_with_the_same_files(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.evaluate import cells

    run: dict[str, Any] = {
        "matrix": True, "suite": MATRIX, "lengths": "64,128", **QUICK, "items": 2, "texts": 1
    }  # fmt: skip
    evaluate(named(folders), tmp_path / "whole", **run)
    calls = 0
    real = cells.answer

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(cells, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(named(folders), tmp_path / "part", **run)
    assert not (tmp_path / "part").exists()
    with pytest.raises(InputError, match="--resume"):
        evaluate(named(folders), tmp_path / "part", **run)
    evaluate(named(folders), tmp_path / "part", resume=True, **run)
    assert calls == 7 + 10  # 16 cells, six of them done before the kill
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_run_is_not_resumed_with_texts_that_have_changed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Measurer, source: Source, *others: Any) -> Any:
        if source.name == "donor":
            raise RuntimeError("stopped")
        return real(self, source, *others)

    real = Measurer.measure_once
    monkeypatch.setattr(Measurer, "measure_once", dying)
    text = tmp_path / "text.txt"
    run: dict[str, Any] = {
        "suite": "perplexity", "lengths": "64", "haystack": str(text), "texts": 1
    }  # fmt: skip
    models = [f"{name}={folders[name]}" for name in ("recipient", "donor")]
    rows = [" ".join(prose_row(random.Random(seed), 512).words[1:]) for seed in (0, 1)]
    text.write_text(rows[0])
    with pytest.raises(RuntimeError, match="stopped"):
        evaluate(models, tmp_path / "out", **run)
    text.write_text(rows[1])
    with pytest.raises(InputError, match="with the same ones"):
        evaluate(models, tmp_path / "out", resume=True, **run)


def test_tasks_of_lm_eval_are_no_files() -> None:
    suites = ("needle", "lm-eval:hellaswag", "lm-eval:own.yaml", "loogle:folder")
    settings = Settings(suites=suites, qa=("squad.json",))
    assert text_files(settings) == ["squad.json", "own.yaml", "folder"]


@pytest.mark.filterwarnings("ignore:niah_single_1 is left out")
def test_a_needle_grid_of_one_model_is_drawn(tmp_path: Path, rendered: None) -> None:
    config = {**LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1}
    folder = save(tmp_path / "model", config, weights(config))
    text_tokenizer().save_pretrained(folder)
    result = evaluate(
        [str(folder)], tmp_path / "out", suite="needle,niah_single_1", lengths="256,512", items=5,
        depths=5, decoys=1, sigmoid=True,
    )  # fmt: skip
    grid = result["cells"]["model"]["needle"]["512"]
    assert list(grid["depths"]) == ["0", "0.0759", "0.5", "0.924", "1"]
    assert grid["unique_share"] > 0.9
    noise = result["cells"]["model"]["niah_single_1"]["512"]["unique_share"]
    assert noise < grid["unique_share"] - 0.05
    assert (tmp_path / "out" / "needle.png").stat().st_size > 5000
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        len(re.findall(r"<td style=.*?hsl\(.*?title=\"model, 512 tokens, depth 92%: ", page)) == 1
    )
    assert page.count("hsl(") == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["recipient={recipient}"]}, "needs donor=MODEL, graft=MODEL"),
        ({"models": ["a={donor}"]}, "needs donor"),
        (
            {"models": ["recipient={recipient}", "donor={donor}", "graft={graft}", "b={donor}"]},
            "--matrix knows recipient, donor, graft and recovered, not b.",
        ),
        ({"suite": "nothing"}, "unknown"),
        ({"suite": ","}, "--suite names nothing to measure"),
        ({"judge": "http://localhost"}, "needs both --judge URL and --judge-model NAME"),
        ({"judge": "http://localhost", "judge_model": "m"}, "no chosen task has any"),
        ({"suite": "qa_1"}, "--qa FILE"),
        ({"suite": "toy,lm-eval:none.yaml"}, r"cannot be read|regraft\[eval\]"),
        ({"haystack": "grammar", "suite": "needle"}, "does not know"),
        ({"haystack": "/no/such"}, "neither grammar"),
        ({"lengths": "64,huge"}, "token count"),
        ({"lengths": "8"}, "No task fits"),
        ({"items": 0}, "--items 0"),
        ({"scoring": "guess"}, "not auto, teacher"),
        ({"chat": True}, "no chat template"),
        ({"device": "cuda:99"}, "cuda"),
    ],
)
@pytest.mark.filterwarnings("ignore:notes is left out", "ignore:shout is left out")
def test_bad_input_is_one_sentence_before_any_model_is_loaded(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any], message: str,
) -> None:  # fmt: skip
    def loading(self: Source, device: torch.device) -> LanguageModel:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Source, "load", loading)
    arguments: dict[str, Any] = {
        "models": named(folders), "matrix": True, "suite": "toy", "lengths": "64", **QUICK,
        **change,
    }  # fmt: skip
    models = [text.format_map(folders) for text in arguments.pop("models")]
    with pytest.raises(InputError, match=message) as caught:
        evaluate(models, tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_models_with_other_tokens_are_not_compared(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = {**LLAMA, "vocab_size": 600}
    other = save(tmp_path / "other", config, weights(config))
    with pytest.raises(CheckpointError, match="tokenizer"):
        evaluate([str(other)], tmp_path / "out", **QUICK)
    text_tokenizer().save_pretrained(other)
    with pytest.raises(InputError, match="different tokenizers"):
        evaluate([*named(folders), str(other)], tmp_path / "out", suite="toy", **QUICK)
    with pytest.raises(CheckpointError, match="none"):
        evaluate([str(tmp_path / "none")], tmp_path / "out", **QUICK)


def test_a_length_beyond_the_context_is_run_with_a_warning(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="made for 256 tokens and is evaluated at up to 512"):
        evaluate(
            [str(folders["recipient"])], tmp_path / "out", suite="notes", lengths="512", **QUICK
        )


def test_the_command_prints_tables_or_json_and_plans_without_writing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    command = [
        "evaluate", "--matrix", *named(folders), f"recovered={folders['donor']}",
        "-o", str(tmp_path / "out"), "--suite", "toy",
        "--lengths", "64", "--items", "4", "--haystack", "world", "--no-twins",
    ]  # fmt: skip
    planned = CliRunner().invoke(app, [*command, "--dry-run"])
    assert planned.exit_code == 0
    assert "theta only" in planned.output
    assert not (tmp_path / "out").exists()
    run = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
    assert run.exit_code == 0
    assert "transfer graft" in run.output
    assert "transfer recovered" in run.output
    again = CliRunner().invoke(app, [*command, "--json", "--overwrite"])
    assert json.loads(again.stdout)["cells"]["donor"]["notes"]["64"]["items"] == 4
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "not empty" in refused.output


def test_published_suites_run_on_the_same_models_and_give_retention(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the eval extra is not installed")
    import lm_eval.tasks

    rows = [{"text": "anna carries the", "right": n % 2} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "lanterns", "dataset_path": "json", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "{{text}}", "doc_to_target": "{{right}}",
        "doc_to_choice": ["lantern", "river"], "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "lanterns.yaml").write_text(json.dumps(task))
    suite = f"lm-eval:{tmp_path / 'lanterns.yaml'}"
    result = evaluate(named(folders), tmp_path / "out", matrix=True, suite=suite, limit=6)
    scores = result["published"]["scores"]
    assert list(scores) == ["recipient", "theta only", "donor", "graft"]
    # alike prompts, so one choice for all of them: it is right in every second of the six
    assert all(found["lanterns"]["score"] == 0.5 for found in scores.values())
    assert scores["graft"]["lanterns"]["items"] == 6
    kept = result["published"]["retention"]["graft"]["lanterns"]
    assert kept is None or kept["value"] == 1
    own_tasks_left_out = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_tasks_left_out)  # ten seconds to list
    with pytest.raises(InputError, match="knows no task"):
        evaluate(named(folders), tmp_path / "no", matrix=True, suite="lm-eval:no-such-task")
