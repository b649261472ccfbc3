"""A whole training on a toy: what it writes, that a killed one goes on to the last digit, and that
what it cannot do is said in one sentence."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from regraft import cli, progress
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.peft_check import peft_deltas
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError, RegraftError
from regraft.records import to_json
from regraft.rope import scaling_law
from regraft.train import job, setup
from regraft.train.job import train_model
from regraft.train.output import log as metrics
from regraft.train.output import trackers
from regraft.train.recipe.execution import Optimizer
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.stages import Schedule
from regraft.train.step.optimizers import factor, make
from regraft.train.validation import reason_to_stop

RECIPE = """
model: {model}
method: full
rope: {{law: scaling}}
stages:
  - {{length: 64, steps: 5, batch: 4, rate: 3e-3, mix: {{short: 1}}}}
  - {{length: 256, steps: 5, batch: 2, rate: 1e-3, mix: {{long: 2, short: 1}}}}
data:
  cache: {cache}
  held_out: 0.1
  sources:
    - {{name: short, jsonl: {short}, rows: packed}}
    - {{name: long, synthetic: notes, words: 256, documents: 30}}
memory: {{rows: 2}}
schedule: {{warmup: 2}}
watch: {{every: 3, rows: 3}}
save_every: 3
seed: 5
"""
TOY = "{toy: {length: 64, theta: 70, hidden: 32, intermediate: 48}}"


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A cache, and short texts of many lengths."""
    from regraft.data.sources import Text, documents

    folder = tmp_path_factory.mktemp("home")
    with (folder / "short.jsonl").open("w") as file:
        for words in (9, 17, 30, 44, 64):
            for text in documents(Text("synthetic", "notes", documents=8, words=words)):
                file.write(json.dumps({"text": text}) + "\n")
    return folder


def written(folder: Path, home: Path, text: str = RECIPE, model: str | Path = TOY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(
        text.format(model=model, cache=home / "cache", short=home / "short.jsonl"), "utf-8"
    )
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, home) -> Path:
    """A run that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train_model(written(folder, home), folder / "out", device="cpu")
    return folder / "out"


@pytest.fixture(scope="module")
def counted(tmp_path_factory, home, children) -> tuple[Path, int]:
    """The same run by the command line, and how often it changed the disk."""
    folder = tmp_path_factory.mktemp("counted")
    recipe, out = written(folder, home), folder / "out"
    done = children.run("train", recipe, "-o", out, "--device", "cpu", "--threads", "1", "-q")
    assert done["code"] == 0, done["err"]
    return out, done["calls"]


def losses(folder: Path) -> list[Any]:
    return [
        [line[key] for key in ("step", "stage", "loss", "tokens", "gradient", "rate")]
        for line in metrics.read_lines(folder / "metrics.jsonl")
    ]


def test_a_run_leaves_a_model_its_record_and_its_metrics(whole):
    lines = metrics.read_lines(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["stage"] for line in lines] == [1] * 5 + [2] * 5
    assert [line["length"] for line in lines] == [64] * 5 + [256] * 5
    assert lines[-1]["tokens"] == 5 * 4 * 64 + 5 * 2 * 256
    assert lines[4]["loss"] < lines[0]["loss"]
    theta = float(round(scaling_law(70, 64, 256)))
    config = json.loads((whole / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == theta
    assert config["max_position_embeddings"] == 256
    looks = metrics.read_lines(whole / "watch.jsonl")
    assert [(look["step"], look["length"]) for look in looks] == [
        (0, 64), (3, 64), (5, 64), (5, 256), (8, 256), (10, 256)
    ]  # fmt: skip
    assert (whole / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (whole / "tokenizer.json").is_file()
    record = json.loads((whole / "train.json").read_text())
    assert record["steps"] == 10
    assert record["stage_steps"] == [5, 5]
    card = (whole / "README.md").read_text()
    assert f"| 2 | 256 | {theta:.6g} | 5 | 2 | 0.001 |" in card
    assert "curves.png" in card
    hidden = [path.name for path in whole.iterdir() if path.name.startswith(("state", "."))]
    assert hidden == [".regraft-files.json"]


def test_transformers_reads_the_model_and_finds_the_nll_that_was_watched(whole, home):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from regraft.data.rows import hold_out
    from regraft.data.sources import Text, documents

    model = AutoModelForCausalLM.from_pretrained(whole).eval()
    tokenizer = AutoTokenizer.from_pretrained(whole)
    texts = list(documents(Text("synthetic", "notes", documents=30, words=256, seed=5)))
    held = hold_out(30, 0.1, 5)[1]
    assert len(held) == 3
    nll = []
    for document in held:
        ids = [*tokenizer(texts[document])["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor(ids[:257])[None]
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1]).logits
        nll.append(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none"))
    far = torch.cat([row[128:] for row in nll]).mean()
    watched = metrics.read_lines(whole / "watch.jsonl")[-1]["nll"]["128-256"]
    assert float(far) == pytest.approx(watched, abs=2e-5)


def test_runs_killed_anywhere_go_on_to_the_last_digit(whole, counted, home, tmp_path, children):
    recipe = written(tmp_path, home)
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "--threads", "1", "-q"]
    undisturbed, calls = counted
    assert losses(undisturbed) == losses(whole)
    for share in (0.35, 0.25, 0.15):
        died = children.run(*line, "--resume", die=int(share * calls))
        assert died["code"] == -9
    last = children.run(*line, "--resume")
    assert last["code"] == 0, last["err"]
    assert losses(tmp_path / "out") == losses(whole)
    same = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert same == (whole / "model.safetensors").read_bytes()


def test_a_full_disk_keeps_the_last_good_state(whole, counted, home, tmp_path, children):
    recipe = written(tmp_path, home)
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "--threads", "1", "-q"]
    failed = children.run(*line, fail=counted[1] // 2)
    assert failed["code"] == 1
    assert "regraft: " in failed["err"]
    assert "Traceback" not in failed["err"]
    assert not (tmp_path / "out").exists()
    assert children.run(*line, "--resume")["code"] == 0
    assert losses(tmp_path / "out") == losses(whole)


def test_text_that_changed_under_a_resume_is_refused(home, tmp_path):
    own = tmp_path / "home"
    own.mkdir()
    shutil.copy(home / "short.jsonl", own)
    recipe = written(tmp_path, own, RECIPE.replace("rate: 1e-3", "rate: 1e30"))
    with pytest.raises(RegraftError, match=r"became .* at step \d"):
        train_model(recipe, tmp_path / "out", device="cpu")
    text = (own / "short.jsonl").read_text()
    (own / "short.jsonl").write_text(text.replace("the", "that"))
    with pytest.raises(InputError, match="'short' has changed since the run was interrupted"):
        train_model(recipe, tmp_path / "out", device="cpu", resume=True)


def test_another_recipe_does_not_go_on_with_a_run(home, tmp_path, undrawn):
    recipe = written(tmp_path, home, RECIPE.replace("rate: 1e-3", "rate: 1e30"))
    with pytest.raises(RegraftError, match="lower the rate"):
        train_model(recipe, tmp_path / "out", device="cpu")
    written(tmp_path, home)
    with pytest.raises(InputError, match="had other inputs or arguments"):
        train_model(recipe, tmp_path / "out", device="cpu", resume=True)


LORA = RECIPE.replace(
    "method: full", "method: lora\nlora: {{rank: 4, alpha: 16, rslora: true, norms: true}}"
).replace("steps: 5", "steps: 2")


def test_a_lora_is_grafted_by_apply_with_norms_and_context(whole, home, tmp_path, undrawn):
    adapter, graft, model = tmp_path / "adapter", tmp_path / "graft", tmp_path / "model"
    train_model(written(tmp_path, home, LORA, whole), adapter, device="cpu")
    folded = LORA + "export: {{kind: model}}\n"
    train_model(written(tmp_path, home, folded, whole), model, device="cpu")
    line = ["apply", adapter, whole, "-o", graft, "--json"]
    done = CliRunner().invoke(cli.app, [str(part) for part in line])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["context"]["output"]["max_position_embeddings"] == 256
    ours, theirs = load_file(graft / "model.safetensors"), load_file(model / "model.safetensors")
    base = load_file(whole / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    assert len([name for name in changed if "norm" in name]) == 5
    assert len([name for name in changed if "proj" in name]) == 14
    assert len(changed) == 19
    told = CliRunner().invoke(cli.app, ["inspect", str(adapter), "--json"])
    assert told.exit_code == 0, told.output


def test_the_lora_of_the_default_recipe_loads_whole_in_peft_and_vllm(
    whole, home, tmp_path, undrawn
):
    """No dense differences, one rank and alpha, no modules_to_save; PEFT's sum is apply's."""
    default = LORA.replace(", norms: true", "")
    adapter = tmp_path / "adapter"
    train_model(written(tmp_path, home, default, whole), adapter, device="cpu")
    assert not (adapter / "regraft-differences.safetensors").exists()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert not any(config[key] for key in ("rank_pattern", "alpha_pattern", "modules_to_save"))
    apply_lora(adapter, whole, tmp_path / "graft")
    base, ours = (load_file(at / "model.safetensors") for at in (whole, tmp_path / "graft"))
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    rebuilt = dict(peft_deltas(Checkpoint.open(whole).config, adapter))
    assert changed == {f"{name}.weight" for name in rebuilt}
    for name, delta in rebuilt.items():
        expected = base[f"{name}.weight"] + delta
        torch.testing.assert_close(ours[f"{name}.weight"], expected, rtol=1e-6, atol=1e-7)
    card = (adapter / "README.md").read_text()
    assert "| PEFT | yes |" in card
    assert "| vLLM | with --max-lora-rank 8 |" in card


def test_the_card_says_who_leaves_trained_norms_out(whole, home, tmp_path, undrawn):
    train_model(written(tmp_path, home, LORA, whole), tmp_path / "out", device="cpu")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| PEFT | the factors, without the 5 dense differences |" in card
    assert "--max-lora-rank 8, without the 5 dense differences |" in card
    assert "| regraft apply | yes |" in card


def test_positions_that_skip_train_short_rows_for_a_long_context(home, tmp_path, undrawn):
    recipe = written(
        tmp_path, home,
        RECIPE + "positions: {{kind: multi_chunk, window: 64, least: 8, unskipped: 0}}\n",
    )  # fmt: skip
    record = train_model(recipe, tmp_path / "out", device="cpu")
    assert record.context.stages[-1].max_position_embeddings == 256
    assert record.tokens == 5 * 4 * 64 + 5 * 2 * 64


def test_numbers_too_large_for_the_exported_type_are_refused(home, tmp_path):
    text = LORA.replace("rate: 1e-3", "rate: 1e5, schedule: {{kind: constant}}")
    text = text.replace("steps: 2, batch: 2", "steps: 1, batch: 2")
    recipe = written(tmp_path, home, text + "export: {{dtype: float16}}\n")
    with pytest.raises(RegraftError, match="too large for float16"):
        train_model(recipe, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_padding_is_a_token_of_the_model(whole, home, tmp_path, undrawn):
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["pad_token"] = "<added>"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    train_model(written(tmp_path, home, LORA, model), tmp_path / "out", device="cpu")
    train_model(written(tmp_path / "b", home, LORA, whole), tmp_path / "b" / "out", device="cpu")
    assert losses(tmp_path / "out") == losses(tmp_path / "b" / "out")


def test_weights_that_are_no_numbers_are_not_trained(whole, home, tmp_path):
    from safetensors.torch import save_file

    model = tmp_path / "model"
    shutil.copytree(whole, model)
    state = load_file(model / "model.safetensors")
    state["model.norm.weight"][0] = math.nan
    save_file(state, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(RegraftError, match=r"'model.norm.weight' of .* holds NaN"):
        train_model(written(tmp_path, home, LORA, model), tmp_path / "out", device="cpu")


def test_a_stage_that_ends_within_its_warm_up_is_told(home, tmp_path):
    text = RECIPE.replace("rate: 1e-3", "rate: 1e-3, schedule: {{warmup: 5}}")
    with pytest.warns(UserWarning, match="Stage 2 warms up for 5 steps and has 5"):
        train_model(written(tmp_path, home, text), tmp_path / "out", device="cpu", dry_run=True)


def test_bfloat16_arithmetic_follows_float32(whole, home, tmp_path, undrawn):
    found = []
    for dtype in ("float32", "bfloat16"):
        recipe = written(tmp_path / dtype, home, LORA + f"dtype: {dtype}\n", whole)
        train_model(recipe, tmp_path / dtype / "out", device="cpu")
        found.append(
            [line["loss"] for line in metrics.read_lines(tmp_path / dtype / "out/metrics.jsonl")]
        )
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("length: 256, steps: 5, batch: 2", "length: 4k, steps: 5, batch: 2", "fills half a row"),
        ("method: full", "method: full\nfreeze: [embbed]", "freeze: no tensor"),
        ("method: full", "method: lora\nlora: {{targets: q_prj}}", "no linear layers 'q_prj'"),
        ("warmup: 2", "warmup: 2}}\nparallel: {{context: 3", "3 processes (context 3)"),
        ("warmup: 2", "warmup: 2}}\noptimizer: {{name: adamw8bit", "say adamw"),
        ("words: 256, documents: 30", "words: 120, documents: 30", "fills half a row"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_cannot_work_is_said_before_it_starts(old, new, words, dry_run, home, tmp_path):
    assert old in RECIPE
    recipe = written(tmp_path, home, RECIPE.replace(old, new))
    with pytest.raises(InputError) as caught:
        train_model(recipe, tmp_path / "out", device="cpu", dry_run=dry_run)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


RECOVER = RECIPE.replace("method: full", "method: recover\nrecover: {{teacher: {model}}}").replace(
    "watch: {{every: 3, rows: 3}}\n", ""
)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE, r"watch: no document is held out, .* unless `separator`"),
        (RECIPE.replace("held_out: 0.1", "held_out: 0"), "data.held_out is 0; raise it"),
        (
            RECIPE.replace("rows: 3", "rows: 3, length: 64, needle: {{question: '" + "the " * 64
                           + "'}}"),
            "a needle and its question do not fit in 64 tokens",
        ),
        (RECOVER, "recover: of the short sources no document is held out"),
    ],
)  # fmt: skip
def test_the_dry_run_makes_the_checks_of_validation_and_recovery(
    text, words, dry_run, whole, home, tmp_path
):
    """One text file is one document, so nothing is held out, unless it is only a needle's room."""
    (tmp_path / "one.txt").write_text("the lantern paints the river . " * 200)
    if "needle" not in text:
        lines = [line for line in text.splitlines() if "synthetic" not in line]
        text = "\n".join(lines).replace(
            "jsonl: {short}, rows: packed", f"text: {tmp_path}/one.txt, rows: packed"
        )
        text = text.replace("mix: {{long: 2, short: 1}}", "mix: {{short: 1}}")
    recipe = written(tmp_path, home, text + "\n", whole)
    with pytest.raises(InputError, match=words):
        train_model(recipe, tmp_path / "out", device="cpu", dry_run=dry_run)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_states_theta_memory_time_and_disk(home, tmp_path):
    recipe = written(tmp_path, home, RECIPE.replace("rope: {{law: scaling}}", ""))
    plan = train_model(recipe, tmp_path / "out", device="cpu", dry_run=True).plan
    assert "by the scaling law, the default" in plan["theta of stage 2"]
    assert "theta of stage 1" not in plan
    assert re.search(r"fits, \d+ MB each; .* a step, .* in all", plan["cost of stage 2"])
    assert re.search(r"\d kB, and up to .* while it runs", plan["disk"])


def test_a_short_fine_tune_leaves_the_context_of_model_and_adapter(whole, home, tmp_path, undrawn):
    """The model has 256 tokens; the only stage has 64."""
    text = LORA.replace(LORA[LORA.index("  - {{length: 256") : LORA.index("data:")], "")
    record = train_model(written(tmp_path, home, text, whole), tmp_path / "adapter", device="cpu")
    before = json.loads((whole / "config.json").read_text())
    assert record.context.stages == [record.context.base]
    written_record = json.loads((tmp_path / "adapter" / "regraft.json").read_text())
    context = written_record["context"]
    assert context["extended"] == context["base"]
    assert context["extended"]["max_position_embeddings"] == 256
    model = written(tmp_path, home, text + "export: {{kind: model}}\n", whole)
    train_model(model, tmp_path / "model", device="cpu")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for key in ("max_position_embeddings", "rope_theta"):
        assert config[key] == before[key]


def test_a_deterministic_run_has_torch_and_cublas_and_the_kernel_that_are(
    whole, home, tmp_path, monkeypatch, undrawn
):
    """On a CPU the weights are those of any run; a GPU gets the one kernel that obeys."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def work(*arguments):
        seen.append((torch.are_deterministic_algorithms_enabled(),
                     os.environ.get("CUBLAS_WORKSPACE_CONFIG")))  # fmt: skip
        return real(*arguments)

    real = job._work
    monkeypatch.setattr(job, "_work", work)
    recipe = written(tmp_path, home, RECIPE + "deterministic: true\n")
    train_model(recipe, tmp_path / "out", device="cpu")
    assert seen == [(True, ":4096:8")]
    assert not torch.are_deterministic_algorithms_enabled()
    assert losses(tmp_path / "out") == losses(whole)
    monkeypatch.setattr(setup, "pick_device", torch.device)
    monkeypatch.setattr(setup.Mesh, "create", lambda *_, kernel, **__: kernel)
    body = Recipe.read(recipe).body
    assert setup.make_mesh(body, "cuda") == "flash"
    assert setup.make_mesh(body, "cpu") == "auto"
    assert setup.make_mesh(body.model_copy(update={"deterministic": False}), "cuda") == "auto"


def test_dry_run_and_schema_write_nothing(home, tmp_path):
    recipe = written(tmp_path, home)
    done = CliRunner().invoke(cli.app, ["train", str(recipe), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    assert "5 steps of 2 x 256 = 2,560 tokens at 0.001" in plan["stage 2"]
    schema = CliRunner().invoke(cli.app, ["train", "--schema"])
    assert json.loads(schema.stdout)["title"] == "regraft training recipe"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_rates_rise_and_fall_as_the_schedule_says():
    cosine = Schedule(kind="cosine", warmup=2, floor=0.1)
    found = [factor(cosine, step, 10) for step in range(11)]
    assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert found[6] == pytest.approx(0.55)
    assert found[10] == pytest.approx(0.1)
    assert factor(Schedule(kind="linear", floor=0), 5, 10) == pytest.approx(0.5)
    assert factor(Schedule(kind="constant"), 9, 10) == 1


def test_rates_hold_before_they_fall():
    schedule = Schedule(kind="linear", warmup=2, stable=0.5, floor=0.2)
    found = [factor(schedule, step, 10) for step in range(11)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    for kind in ("cosine", "linear"):
        assert factor(Schedule(kind=kind, stable=1), 9, 10) == 1


def test_muon_without_a_matrix_of_its_own_is_adamw_alone():
    parameters = {"model.norm.weight": torch.nn.Parameter(torch.ones(2))}
    (found,) = make(parameters, Optimizer(name="muon"))
    assert isinstance(found, torch.optim.AdamW)


def test_only_matrices_decay():
    parameters = {
        "model.layers.0.q.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "model.norm.weight": torch.nn.Parameter(torch.ones(2)),
    }
    (adamw,) = make(parameters, Optimizer(weight_decay=0.1))
    decays = {len(g["params"][0].shape): g["weight_decay"] for g in adamw.param_groups}
    assert decays == {2: 0.1, 1: 0.0}


def test_muon_makes_momentum_orthogonal_and_decays_weights():
    from regraft.train.step.muon import Muon, orthogonal

    torch.manual_seed(0)
    for shape in ((8, 8), (16, 6), (6, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, dtype=torch.float64)))
        assert values.min() > 0.3
        assert values.max() < 1.3
    weight = torch.nn.Parameter(torch.ones(6, 16, dtype=torch.float64))
    muon = Muon([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.randn(6, 16, dtype=torch.float64)
    wanted = 0.95 - 0.1 * orthogonal(weight.grad)
    muon.step()
    torch.testing.assert_close(weight.detach(), wanted)
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))])


def looks(*far: float) -> list[dict[str, float]]:
    return [{"0-512": 2.0, "512-1024": value} for value in far]


def test_a_stage_whose_far_positions_get_worse_is_ended_with_a_reason():
    assert reason_to_stop(looks(3, 2.5, 2.4, 2.3), 0.1) is None
    assert reason_to_stop(looks(2.5, 2.3, 2.6), 0.1) is None  # once is no trend
    assert "rose from 2.300 to 2.700" in str(reason_to_stop(looks(2.5, 2.3, 2.6, 2.7), 0.1))
    assert "positions 512 to 1k" in str(reason_to_stop(looks(2.5, 2.3, 2.6, 2.7), 0.1))
    assert "swings" in str(reason_to_stop(looks(2.5, 2.2, 2.5, 2.2), 0.1))
    assert reason_to_stop(looks(2.5, 2.45, 2.5, 2.45), 0.1) is None


SWINGING = (
    RECIPE.replace(RECIPE[RECIPE.index("  - {{length: 256") : RECIPE.index("data:")], "")
    .replace("steps: 5, batch: 4, rate: 3e-3", "steps: 40, batch: 4, rate: 0.3, {theta}")
    .replace("watch: {{every: 3", "watch: {{stop: true, tolerance: 0.05, every: 2")
    .replace("save_every: 3", "save_every: 4")
)
"""A stage that will be stopped, at whatever theta."""


def test_a_stage_that_is_stopped_begins_again_with_the_next_theta(home, tmp_path, children):
    plain = written(tmp_path / "alone", home, SWINGING.replace("{theta}", "theta: 300"))
    with pytest.warns(UserWarning, match="Stage 1 ends at step"):
        alone = train_model(plain, tmp_path / "alone" / "out", device="cpu")
    recipe = written(tmp_path, home, SWINGING.replace("{theta}", "theta: 100, fallback: [300]"))
    line = ["train", recipe, "-o", tmp_path / "out", "--device", "cpu", "--threads", "1", "-q"]
    counted = children.run(*line[:3], tmp_path / "counted", *line[4:])
    assert counted["code"] == 0, counted["err"]
    lines = metrics.read_lines(tmp_path / "counted" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    first, second = ([line for line in lines if line["attempt"] == number] for number in (1, 2))
    assert ({line["theta"] for line in first}, {line["theta"] for line in second}) == ({100}, {300})
    wanted = metrics.read_lines(tmp_path / "alone" / "out" / "metrics.jsonl")
    for key in ("loss", "gradient", "rate", "valid"):
        assert [line[key] for line in second] == [line[key] for line in wanted]
    weights = (tmp_path / "alone" / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "counted" / "model.safetensors").read_bytes() == weights
    record = json.loads((tmp_path / "counted" / "train.json").read_text())
    (lost,) = record["abandoned"]
    assert (lost["stage"], lost["theta"], lost["steps"]) == (1, 100, len(first))
    assert "NLL at" in lost["reason"]
    for key in ("steps", "stage_steps", "tokens", "stopped", "context"):
        assert record[key] == to_json(alone)[key]
    assert len(second) < 40
    assert all(math.isfinite(line["loss"]) for line in lines)
    card = (tmp_path / "counted" / "README.md").read_text()
    assert f"stage 1, after {len(first)} steps at theta 100: NLL" in card

    for share in (0.45, 0.3):
        assert children.run(*line, "--resume", die=int(share * counted["calls"]))["code"] == -9
    last = children.run(*line, "--resume")
    assert last["code"] == 0, last["err"]
    assert losses(tmp_path / "out") == losses(tmp_path / "counted")
    looks = [metrics.read_lines(tmp_path / name / "watch.jsonl") for name in ("out", "counted")]
    assert looks[0] == looks[1]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_speed_is_told_and_mfu_only_against_a_known_rate(whole, home, tmp_path):
    from regraft.train.estimate.budget import Shape, step_flops

    line = metrics.read_lines(whole / "metrics.jsonl")[-1]
    assert "mfu" not in line
    assert line["tokens_per_second"] == pytest.approx(2 * 256 / line["seconds"])
    assert line["left"] == 0
    assert line["memory"] > 0
    text = RECIPE.replace("mix: {{short: 1}}", "mix: {{long: 1}}") + "parallel: {{peak: 1e9}}\n"
    train_model(written(tmp_path, home, text.replace("steps: 5", "steps: 1")), tmp_path / "out",
          device="cpu")  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    count = sum(
        value.numel() for value in load_file(tmp_path / "out" / "model.safetensors").values()
    )
    line = metrics.read_lines(tmp_path / "out" / "metrics.jsonl")[0]
    flops = 4 * step_flops(Shape.of(config, count, count), 64, full=True, checkpoint=False).total
    assert line["mfu"] == pytest.approx(flops / line["seconds"] / 1e9)


def test_time_left_is_reckoned_from_what_was_really_done(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("regraft.progress.time.monotonic", lambda: now[0])
    with progress.bar("training", total=1000) as bar:
        bar.skip(500)  # by a run before
        assert bar.left is None
        now[0] += 10
        bar.advance(100)
        assert bar.left == pytest.approx(40)
        bar.skip(-100)  # to be done again
        assert bar.left == pytest.approx(50)


def test_attention_counts_within_documents():
    from regraft.data.batch import Row
    from regraft.train.estimate.throughput import document_lengths

    ids = torch.zeros(6, dtype=torch.long)
    row = Row(ids, ids, ids, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert document_lengths(row).tolist() == [3, 2, 1]


class Service:
    """What a run tells a service."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Service:
            self.said.append((name, given, named))
            return self

        return call


def test_services_are_told_where_they_are_asked_for_or_installed(home, tmp_path, monkeypatch):
    wandb, board = types.ModuleType("wandb"), types.ModuleType("torch.utils.tensorboard")
    run, writer = Service(), Service()
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init, board.SummaryWriter = run.init, writer.SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    text = RECIPE.replace("steps: 5", "steps: 2") + "track: wandb\n"
    train_model(written(tmp_path, home, text), tmp_path / "out", device="cpu")
    (_, _, started), *rest = run.said
    assert started["config"]["stages"][1]["length"] == 256
    logged = [(named["step"], given[0]["loss"]) for _, given, named in rest
              if given and "loss" in given[0]]  # fmt: skip
    lines = [
        (line["step"], line["loss"]) for line in metrics.read_lines(tmp_path / "out/metrics.jsonl")
    ]
    assert logged == lines
    assert rest[-1][0] == "finish"
    scalars = [(given[2], given[1]) for name, given, _ in writer.said
               if name == "add_scalar" and given[0] == "loss"]  # fmt: skip
    assert scalars == lines
    assert not list((tmp_path / "out").rglob("*wandb*"))


def test_a_run_to_be_sent_later_is_kept(tmp_path):
    kept = tmp_path / "states/wandb/offline-run-7"
    kept.mkdir(parents=True)
    (kept / "run.wandb").write_text("figures")
    (tmp_path / "staging").mkdir()
    trackers.save_offline_runs(tmp_path / "states", tmp_path / "staging", tmp_path / "out")
    assert (tmp_path / "staging/wandb/offline-run-7/run.wandb").read_text() == "figures"
    trackers.save_offline_runs(tmp_path / "none", tmp_path / "staging", tmp_path / "out")


def test_tensorboard_reads_what_was_trained(home, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    text = RECIPE.replace("steps: 5", "steps: 2")
    train_model(written(tmp_path, home, text), tmp_path / "out", device="cpu")
    events = accumulator.EventAccumulator(str(tmp_path / "out/tensorboard")).Reload()
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    lines = metrics.read_lines(tmp_path / "out/metrics.jsonl")
    assert told == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines]
    assert told


def test_a_service_that_refuses_is_one_sentence(tmp_path, monkeypatch):
    wandb: Any = types.ModuleType("wandb")

    def init(**_: Any) -> None:
        raise wandb.Error("No API key\nconfigured.")

    wandb.Error, wandb.init = type("Error", (Exception,), {}), init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    body: Any = types.SimpleNamespace(track="wandb", model_dump=dict)
    with pytest.raises(InputError, match=r"\(No API key configured\.\); `wandb login`"):
        trackers.Trackers(tmp_path / "tensorboard", tmp_path / "states", 0, body)


def test_a_service_that_is_not_installed_is_refused(home, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(InputError, match="wandb is not installed here"):
        train_model(
            written(tmp_path, home, RECIPE + "track: wandb\n"), tmp_path / "out", device="cpu"
        )
    assert not (tmp_path / "out").exists()
