"""Every benchmark runs from end to end with toy sizes, offline, and leaves the tables alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_extract_runs_without_mergekit_even_where_it_is_not_installed(benchmark, monkeypatch):
    import harness

    def version(package: str) -> str:
        assert package != "mergekit"
        return "1"

    monkeypatch.setattr(harness, "version", version)
    printed, mergekit, _ = benchmark("extract", "--quick", "--skip-mergekit")
    assert "| mlp.down_proj |" in printed
    assert mergekit == []


def test_mergekit_gets_absolute_paths_from_the_default_folder(benchmark, monkeypatch):
    """A relative path that mergekit does not find in its place is an id of the Hub to it."""
    import shutil

    import llama8b

    importlib.import_module("extract")
    benchmark_extract = sys.modules["extract"]
    real = benchmark_extract._mergekit

    def stand_in(base: Path, extended: Path, out: Path, rank: int) -> Any:
        child = real(base, extended, out, rank)
        shutil.copytree(out.parent / "lora", out, dirs_exist_ok=True)  # what mergekit would write
        return child

    monkeypatch.setattr(benchmark_extract, "_mergekit", stand_in)
    printed, mergekit, _ = benchmark("extract", "--quick")
    assert "| regraft | mergekit |" in printed
    command = mergekit[0]
    for flag in ("--model", "--base-model"):
        path = Path(command[command.index(flag) + 1])
        assert path.is_absolute()
        assert (path / "config.json").is_file()
    assert Path(command[command.index("--out-path") + 1]).is_absolute()
    assert llama8b.make(Path("bench-out"), 1, "base", llama8b.TOY).is_absolute()


def test_apply_runs_and_agrees_with_peft(benchmark):
    printed, _, _ = benchmark("apply", "--quick")
    assert printed.count("| PEFT merge_and_unload |") == 2
    assert "1 layers: 0 of " in printed


def test_merge_runs_every_method(benchmark):
    printed, _, _ = benchmark("merge", "--quick", "--skip-mergekit")
    for method in ("ties", "dare_ties", "linear", "slerp"):
        assert f"| {method} | regraft |" in printed


def test_merge_kill_compares_bytes(benchmark):
    assert "1 of 1 outputs are byte-identical" in benchmark("merge_kill", "--quick")[0]


def test_attention_measures_every_kernel(benchmark):
    printed, _, _ = benchmark("attention", "--quick")
    for name in ("torch SDPA", "kernel", "gather", "ring"):
        assert f"| 128 | {name}" in printed


def test_a_training_step_is_compared_with_a_plain_one(benchmark):
    printed, _, _ = benchmark("train_step", "--quick")
    assert printed.count("| full |") == printed.count("| lora |") == 2


def test_certificates_are_counted(benchmark):
    assert "Certificate below the true ratio: **0**" in benchmark("certificate", "--quick")[0]


def test_the_demo_runs_by_seed(benchmark):
    assert "| graft, skill at 64 |" in benchmark("demo_seeds", "--quick")[0]


def test_the_extension_is_tried_four_ways(benchmark):
    printed, _, module = benchmark("extend", "--quick")
    assert all(f"| {name} |" in printed for name in module.RECIPES)


def test_the_theta_probe_is_followed_by_a_training(benchmark):
    assert "| scaling law |" in benchmark("theta_probe", "--quick")[0]


def test_data_speed_builds_with_each_step(benchmark):
    printed, _, module = benchmark("data_speed", "--quick")
    assert [printed.count(f"| {step} |") for step in module.LARGE] == [2, 2, 2, 2]


def test_trainings_on_chosen_text_are_compared(benchmark):
    printed, _, _ = benchmark("data_training", "--quick")
    assert "| before |" in printed
    assert "| context gain |" in printed
    assert "| shorts untied, keys | 100% shorts |" in printed


def test_measures_of_dependency_see_four_kinds_of_text(benchmark):
    printed, _, _ = benchmark("context_gain", "--quick")
    assert "| one piece repeated, copies count | " in printed
    assert printed.count("| eight texts joined | ") == 2


def test_configs_are_compared_between_two_pythons(benchmark, monkeypatch):
    """The present transformers in both places: its own files agree with themselves."""

    def in_this_process(command: list[str], *, input: str, **_: Any) -> Any:
        printed = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "stdin", io.StringIO(input))
            exec(command[2], {"__name__": "__main__"})
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    module = importlib.import_module("config_roundtrip")
    monkeypatch.setattr(module.subprocess, "run", in_this_process)
    printed, _, _ = benchmark("config_roundtrip", "--old-python", sys.executable)
    assert "DISAGREE" not in printed
    assert "agree" in printed


def test_logits_are_compared_between_two_pythons(benchmark):
    printed, _, _ = benchmark("transformers4_logits", "--quick", "--old-python", sys.executable)
    assert "| theta | regraft apply |" in printed
    assert "DIFFERENT" not in printed


def test_llama_cpp_says_what_to_install_where_it_is_missing(tmp_path):
    line = [sys.executable, BENCHMARKS / "llama_cpp.py", "--python", "/nowhere/python", "--quick"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install llama-cpp-python" in done.stderr
    assert done.stderr.count("\n") == 1


def test_endpoint_says_what_to_install_where_it_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    words = ["endpoint.py", "--python", "/nowhere/python", "--real", "smollm.gguf"]
    monkeypatch.setattr(sys, "argv", words)
    assert importlib.import_module("endpoint").main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pip install 'llama-cpp-python[server]" in printed.err
    assert printed.err.count("\n") == 1


def test_replies_are_counted_and_asked_for_once(benchmark):
    printed, _, _ = benchmark("rephrase", "--quick")
    assert "| passages | 8 | 100% |" in printed
    assert "8 an answer that is in several pieces" in printed
    assert "The second builds have the same bytes." in printed


def test_steps_are_rehearsed_by_shape(benchmark):
    printed, _, _ = benchmark("rehearse", "--quick")
    assert "| toy | full | 256 | ulysses 2 x shard 2 | offload |" in printed
    assert "all-to-all" in printed


def test_traces_stand_beside_published_figures(benchmark):
    assert "| toy | toy | lora | 64 |" in benchmark("published", "--quick")[0]
