"""The whole examination: scores against direct computation, ratios, killed runs, bad input."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import evaluate, text_tokenizer, toy, world_tokenizer
from models import GEMMA2, LLAMA, LONG, contents, save, weights
from torch.nn import functional as F
from typer.testing import CliRunner

from regraft.cli import app
from regraft.data.toy_language import IDS, WORDS
from regraft.errors import CheckpointError, InputError
from regraft.evaluate.answers import drift, perplexity
from regraft.evaluate.answers.model import LanguageModel, Source
from regraft.evaluate.answers.scoring import answer, batches
from regraft.evaluate.prompts.haystack import World
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import read_result
from regraft.evaluate.tasks import Draft, Kit, Task
from regraft.records import dump_json

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"haystack": "world", "items": 6, "texts": 2}
MATRIX = "toy,perplexity,drift"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "recipient": toy(root / "recipient"),
        "donor": toy(root / "donor", seed=1, **LONG),
        "graft": toy(root / "graft", seed=2, **LONG),
    }


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LanguageModel:
    return Source("m", str(folders["recipient"])).load(CPU)


def named(folders: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in folders.items()]


def copying(kit: Kit, budget: int, number: int) -> Draft:
    word = ("maple", "otter", "violet")[number % 3]
    return Draft(f"note paris {word} ;", "note paris copper ;", (word,), candidates=("otter", word))


COPY = Task("copy", copying, lambda prompt: prompt.split()[2:3], answer_tokens=4)


def test_teacher_forcing_says_what_greedy_decoding_says(model: LanguageModel) -> None:
    # the answer is what the model itself would go on with, or that with its last word changed
    prompter = Prompter(world_tokenizer())
    prompts = ["anna carries the lantern .", "note paris otter maple ; ask paris", "the old"]
    drafts = []
    for prompt in prompts:
        ids = model.generate([prompter.ids(prompt)], 3)[0]
        drafts.append((prompt, " ".join(WORDS[i] for i in ids)))
        drafts.append((prompt, " ".join(WORDS[i] for i in [*ids[:2], (ids[2] + 1) % 200 + 3])))

    def make(kit: Kit, budget: int, number: int) -> Draft:
        prompt, answer = drafts[number]
        return Draft(prompt, prompt, (answer,))

    task = Task("own", make, lambda prompt: [], answer_tokens=3)
    kit = Kit(prompter, World())
    items = [task.item(kit, 64, number) for number in range(len(drafts))]
    for budget in (1, 20, 1000):
        forced = answer(model, prompter, items, "teacher", budget=budget, max_new_tokens=3)
        said = answer(model, prompter, items, "generate", budget=budget, max_new_tokens=3)
        assert [a.score for a in forced] == [1, 0] * 3
        assert [a.score for a in said] == [1, 0] * 3
        assert [a.twin for a in forced] == [1, 0] * 3


def test_nll_of_an_answer_is_that_of_its_tokens(model: LanguageModel) -> None:
    prompter = Prompter(world_tokenizer())
    items = [COPY.item(Kit(prompter, World()), 64, number) for number in range(3)]
    result = answer(model, prompter, items, "teacher", budget=1000, max_new_tokens=4)
    for item, got in zip(items, result, strict=True):
        for prompt, key in ((item.prompt, "nll"), (item.twin, "twin_nll")):
            ids = torch.tensor([prompter.ids(prompt)])
            logits = model.model(input_ids=ids).logits[0, -1]
            expected = -logits.detach().log_softmax(-1)[IDS[item.references[0]]]
            assert getattr(got, key) == pytest.approx(float(expected), rel=1e-4)


def test_the_likelier_candidate_is_chosen(model: LanguageModel) -> None:
    prompter = Prompter(world_tokenizer())
    items = [COPY.item(Kit(prompter, World()), 64, number) for number in range(3)]
    result = answer(model, prompter, items, "candidates", budget=1000, max_new_tokens=4)
    for item, got in zip(items, result, strict=True):
        ids = torch.tensor([prompter.ids(item.prompt)])
        logits = model.model(input_ids=ids).logits[0, -1].detach()
        best = max(item.candidates, key=lambda word: float(logits[IDS[word]]))
        assert got.said == best
        assert got.score == (best == item.references[0])


def test_batches_hold_no_more_than_the_budget_and_every_row_once() -> None:
    lengths = [5, 90, 7, 300, 7, 2, 90]
    result = list(batches(lengths, 200))
    assert sorted(i for batch in result for i in batch) == list(range(len(lengths)))
    for batch in result:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 200


def test_logits_are_the_models_own_where_it_caps_them(tmp_path: Path) -> None:
    config = {**GEMMA2, "final_logit_softcapping": 0.5, "torch_dtype": "float32"}
    save(tmp_path / "gemma", config, weights(config))
    model = Source("g", str(tmp_path / "gemma")).load(CPU)  # compares them when it loads
    logits = model.head(model.rows([[1, 2, 3]])[0])
    assert logits.abs().max() <= 0.5


def test_perplexity_by_position_and_gain_are_those_of_the_plain_formula(
    model: LanguageModel,
) -> None:
    prompter = Prompter(world_tokenizer())
    rows = perplexity.texts(prompter, World(), 160, 2, seed=0)
    assert [len(row) for row in rows] == [160, 160]
    result = perplexity.measure(model, rows, budget=400)
    ids = torch.tensor(rows)
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    nll = nll.view(2, -1)
    assert list(result.nll) == ["0-64", "64-128", "128-160"]
    assert result.nll["64-128"] == pytest.approx(float(nll[:, 63:127].mean()), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(float(nll.mean())), rel=1e-3)
    near = []
    for row in rows:  # windows of 32 tokens that advance by 8, behind <s>
        for at in range(80, 160, 8):
            part = torch.tensor([[row[0], *row[at - 32 : at + 8]]])
            with torch.no_grad():
                logits = model.model(input_ids=part).logits[0, :-1]
            near.append(F.cross_entropy(logits, part[0, 1:], reduction="none")[-8:])
    gain = float(torch.cat(near).mean() - nll[:, 79:].mean())
    assert result.gain == {"32": pytest.approx(gain, abs=1e-4)}


def test_key_tokens_of_one_model_are_counted_in_another(
    model: LanguageModel, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # no token gains two nats in a random model
    monkeypatch.setattr(perplexity, "_key_mask", lambda near, full: near > full)
    other = Source("d", str(folders["donor"])).load(CPU)
    rows = perplexity.texts(Prompter(world_tokenizer()), World(), 160, 2, seed=0)
    keys = perplexity.key_tokens(other, rows, budget=400)
    assert keys is not None
    assert sum(map(len, keys)) > 3
    own = perplexity.measure(model, rows, 400)
    result = perplexity.measure(model, rows, 400, keys)
    assert result.key_share == pytest.approx(sum(map(len, keys)) / 160)
    assert result.key_share != own.key_share
    nll = model.score(rows, [[80 + at for at in row] for row in keys])
    mean = float(torch.cat([values for values, _ in nll]).mean())
    assert result.long_perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert perplexity.measure(other, rows, 400) == perplexity.measure(other, rows, 400, keys)
    assert perplexity.key_tokens(other, [row[:100] for row in rows], 400) is None


def test_drift_from_oneself_is_nothing_and_from_another_is_the_formula(
    model: LanguageModel, folders: dict[str, Path]
) -> None:
    rows = perplexity.texts(Prompter(world_tokenizer()), World(), 50, 2, seed=0)
    reference = drift.Reference(model, rows)
    own = drift.measure(model, reference)
    assert own.kl == pytest.approx(0, abs=1e-6)
    assert own.cosine == pytest.approx(1, abs=1e-5)
    assert own.top1 == 1
    other = Source("d", str(folders["donor"])).load(CPU)
    result = drift.measure(other, reference)
    ids = torch.tensor(rows)
    with torch.no_grad():
        p = model.model(input_ids=ids).logits.double().log_softmax(-1)
        q = other.model(input_ids=ids).logits.double().log_softmax(-1)
    kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert result.kl == pytest.approx(float(kl), rel=1e-3)
    assert result.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


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

    run: dict[str, Any] = {"matrix": True, "suite": MATRIX, "lengths": "64,128", **QUICK}
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
        ({"suite": "nothing"}, "unknown"),
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
