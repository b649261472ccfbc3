"""The GPU qualification: its rehearsal on a CPU, and parts that fail, hang or are killed."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.bench
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module; what it sets in the environment is undone."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("PYTORCH_NVML_BASED_CUDA_CHECK", "CUBLAS_WORKSPACE_CONFIG", "HF_HUB_OFFLINE",
                 "REGRAFT_CACHE", "OMP_WAIT_POLICY", "KMP_BLOCKTIME",
                 "PYTORCH_CUDA_ALLOC_CONF"):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return importlib.import_module("gpu")


def call(gpu, monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    return gpu.main()


def test_every_part_holds_on_a_cpu_and_leaves_tables(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--rehearse", "-o", tmp_path],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    text = (tmp_path / "gpu.md").read_text()
    names = ("kernels", "nccl", "step", "fused", "offload", "extract", "merge", "constants",
             "4bit", "64k", "levers", "long", "longest", "evaluate", "wide", "128k")  # fmt: skip
    assert all(f"| {name} | ok |" in text for name in names)
    assert "do not hold" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(gpu, monkeypatch, tmp_path, capsys):
    assert call(gpu, monkeypatch, "-o", tmp_path) == 2
    assert "sees no GPU here" in capsys.readouterr().err
    assert (tmp_path / "gpu.jsonl").read_text() == ""


def test_without_pydantic_the_wheels_to_carry_are_named(gpu, monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "pydantic" else find(name)
    )
    assert call(gpu, monkeypatch, "--rehearse", "-o", tmp_path) == 2
    message = capsys.readouterr().err
    assert "not installed here: pydantic." in message
    assert all(name in message for name in ("pydantic-core", "annotated-types"))
    assert "typing-inspection" in message


def test_parts_that_hang_die_or_fail_leave_their_lines_and_the_rest_runs(
    gpu, monkeypatch, tmp_path, capsys
):
    """As when a kernel hangs, a library crashes, CUDA fails, or a module cannot be imported."""
    import qualification.offload as module

    def hang(scope, report):
        report.figure("before it hangs", steps=1)
        time.sleep(60)

    def die(scope, report):
        report.check("before it dies", True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def fail(scope, report):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fine(scope, report):
        report.check("works", 1 + 1 == 2, left_s=scope.left())

    for work in (hang, die, fail, fine):
        monkeypatch.setattr(module, work.__name__, work, raising=False)
    Part = gpu.Part
    parts = [Part(name, f"offload:{name}", 20) for name in ("die", "fail", "fine")]
    parts += [Part("hang", "offload:hang", 3), Part("absent", "absent:check", 20)]
    monkeypatch.setattr(gpu, "PARTS", tuple(parts))
    monkeypatch.setattr(gpu, "_LEAST", 1.0)
    assert call(gpu, monkeypatch, "--rehearse", "-o", tmp_path) == 1
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    ends = {line["part"]: line["name"] for line in lines if line["kind"] == "end"}
    assert ends == {
        "hang": "time limit", "die": "killed by SIGSEGV", "fail": "failed", "fine": "ok",
        "absent": "failed",
    }  # fmt: skip
    assert "qualification.absent cannot be imported" in capsys.readouterr().err
    names = [line["name"] for line in lines]
    assert "before it hangs" in names
    assert "before it dies" in names
    text = (tmp_path / "gpu.md").read_text()
    assert "illegal memory access" in text
    assert "No module named 'qualification.absent'" in text
    assert "in hang" in text  # where it hung, written before it was killed


def test_a_new_interpreter_runs_one_part(gpu, monkeypatch, tmp_path):
    """The command line of `in_new_interpreter`, for machines where CUDA does not start after a
    fork."""
    part = ("--one", "offload", "offload:check_offload", tmp_path, time.monotonic() + 60)
    assert call(gpu, monkeypatch, "--rehearse", "-o", tmp_path, *part) == 0
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [(line["part"], line["kind"], line["ok"]) for line in lines] == [
        ("offload", "check", True)
    ] * 3


@pytest.mark.parametrize("started", [False, True])
def test_parts_are_forked_only_where_no_import_has_started_cuda(gpu, monkeypatch, started):
    monkeypatch.setattr(gpu, "_IMPORTED", ())
    monkeypatch.setattr(gpu, "PARTS", ())
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: started)
    assert gpu._preload() is not started


def test_imports_of_a_new_interpreter_are_not_in_the_time_of_a_part(gpu, monkeypatch, tmp_path):
    """As with bitsandbytes, which starts CUDA when it is imported."""
    limits = []

    def run_part(work, log, limit):
        limits.append(limit)
        return gpu.Outcome(0, 0.0, "")

    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "PARTS", (gpu.Part("one", "offload:check_offload", 50),))
    run = gpu.Run(tmp_path, "full", 200, None)
    run.folder, run.imports = tmp_path, 30.0
    run.file.touch()
    for run.forks in (True, False):
        run._part(run.parts[0])
    assert limits == [50, 80]
    run.seconds = run._elapsed() + 30  # enough for the part, not for the imports too
    run._part(run.parts[0])
    assert len(limits) == 2


def test_no_part_starts_after_the_seconds_are_used_up(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_preload", lambda: True)
    code = call(gpu, monkeypatch, "--rehearse", "--part", "64k", "--seconds", 3, "-o", tmp_path)
    assert code == 1
    assert "| 64k | no time left |" in (tmp_path / "gpu.md").read_text()


def test_processes_that_a_part_started_end_with_it(gpu, tmp_path):
    from qualification.processes import run_part

    note = tmp_path / "pid"

    def work() -> None:
        child = subprocess.Popen(["sleep", "100"])
        note.write_text(str(child.pid))
        time.sleep(100)

    assert run_part(work, tmp_path / "log", 1.5).code is None
    stat = Path(f"/proc/{note.read_text()}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_tables_of_a_run_that_was_cut_off(gpu, monkeypatch, tmp_path, capsys):
    from qualification.report import Report

    Report(tmp_path / "gpu.jsonl", "machine").machine(card="H100", driver="580")
    Report(tmp_path / "gpu.jsonl", "kernels").check("flash", False, error=0.25, causal=True)
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"part": "step", "kind": "fig')
    assert call(gpu, monkeypatch, "--table", tmp_path) == 1
    text = capsys.readouterr().out
    assert "# GPU qualification: H100\n" in text
    assert "- kernels: flash: error 0.25, causal yes" in text
    assert "| flash | 0.25 | yes | **no** |" in text
    assert call(gpu, monkeypatch, "--table", tmp_path / "nowhere") == 2


def test_parts_of_an_older_run_fill_what_a_newer_one_has_not(gpu, monkeypatch, tmp_path, capsys):
    from qualification.report import Report

    runs = {  # how each part ended
        "new": {"step": "ok", "64k": "ok", "long": "time limit", "wide": "time limit"},
        "old": {"step": "ok", "nccl": "ok", "long": "ok", "wide": "time limit"},
    }
    for folder, parts in runs.items():
        (tmp_path / folder).mkdir()
        Report(tmp_path / folder / "gpu.jsonl", "machine").machine(card="H100")
        for part, end in parts.items():
            report = Report(tmp_path / folder / "gpu.jsonl", part)
            report.check(folder, True)
            report.end(end, 1.0)
    folders = [item for name in ("new", "old") for item in ("--table", tmp_path / name)]
    assert call(gpu, monkeypatch, *folders) == 1  # wide ended well in neither
    text = capsys.readouterr().out
    assert re.findall("^## (.*)|^[|] (new|old)", text, re.M) == [
        ("nccl", ""), ("", "old"), ("step", ""), ("", "new"), ("64k", ""), ("", "new"),
        ("long", ""), ("", "old"), ("wide", ""), ("", "new"),
    ]  # fmt: skip
