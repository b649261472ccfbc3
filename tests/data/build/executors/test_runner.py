"""Parts of sources as tasks of datatrove give the bytes of a build in one process."""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

import regraft
from regraft.data.build import job
from regraft.data.build.executors import options, runner
from regraft.data.build.pool import Pool
from regraft.data.build.read import parts
from regraft.data.build.recipe import Recipe
from regraft.data.build.work import Setting
from regraft.errors import InputError, RegraftError

pytest.importorskip("datatrove")
from regraft.data.build.executors.task import Task

RECIPE = """
sources:
  - name: a
    licence: CC0-1.0
    jsonl: a.jsonl
    steps:
      - quality: {characters: 20, compression: [0, 1], letters: 0, repetition: false}
      - length: {join: 100}
output: {tokenizer: bytes}
"""
CLUSTER = (
    "executor: {partition: long, time: '1:00:00', cpus: 2, memory: 6GB, tasks: 3, "
    "setup: 'module load python', sbatch: {account: me}}\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of several parts, as the working directory, and what a build in one process has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "PART_BYTES", 400)
    lines = [json.dumps({"text": f"{n}. Some short sentence. " * (1 + n % 3)}) for n in range(16)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE + CLUSTER)
    regraft.build_data("recipe.yaml", "plain/text")
    return tmp_path


def _files(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_tasks_on_this_machine_give_the_same_bytes(folder, capfd):
    regraft.build_data("recipe.yaml", "local/text", executor="local")
    assert _files(folder / "local/text") == _files(folder / "plain/text")
    assert capfd.readouterr().err == ""
    assert os.listdir("local") == ["text"]


def test_a_killed_process_of_this_machine_is_an_error_and_its_task_is_done_again(
    folder, monkeypatch
):
    from regraft.data.build.executors import task

    sizes = []

    class Killed(Pool):
        def run(self, calls):
            sizes.append(len(calls))
            for number, result in enumerate(super().run(calls), 1):
                yield result
                if number == 2 and len(sizes) == 1:
                    raise RegraftError("A process was killed")

    monkeypatch.setattr(task, "Pool", Killed)
    with pytest.raises(RegraftError, match="was killed"):
        regraft.build_data("recipe.yaml", "local/text", executor="local")
    regraft.build_data("recipe.yaml", "local/text", executor="local", resume=True)
    assert sizes == [3, 1]
    assert _files(folder / "local/text") == _files(folder / "plain/text")


def test_an_error_of_a_task_is_one_sentence(folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("jsonl: a", "parquet: b"))
    (folder / "b.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"b\.jsonl"):
        regraft.build_data("recipe.yaml", "out", executor="local")


def test_slurm_gets_the_options_of_the_recipe_and_a_resumed_build_its_results(folder, monkeypatch):
    import dill

    bin_ = folder / "bin"
    # sbatch notes the script; the tasks run later
    _script(bin_ / "sbatch", f'for last; do :; done; cp "$last" {folder}/job; echo "job 7"; exit 1')
    _script(bin_ / "scontrol", 'echo "$3"')
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    with (
        pytest.warns(UserWarning, match="sbatch ended with 1"),
        pytest.raises(RegraftError, match=r"3 of 3 tasks left no result, such as a-000000; their"),
    ):
        regraft.build_data("recipe.yaml", "slurm/text", executor="slurm")
    job = (folder / "job").read_text().splitlines()
    lines = {line.removeprefix("#SBATCH --") for line in job if line.startswith("#SBATCH")}
    assert {
        "cpus-per-task=2", "mem-per-cpu=3G", "partition=long", "time=1:00:00", "array=0-2%3",
        "account=me", "wait",
    } <= lines  # fmt: skip
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"; module load python' in job
    (command,) = [line for line in job if "launch_pickled_pipeline" in line]
    with Path(command.split()[-1]).open("rb") as file:
        executor = dill.load(file)
    monkeypatch.setenv("SLURM_NODELIST", "here")
    for rank in (0, 2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(rank))
        executor.run()
    ran = []

    def launch(self, tasks):
        ran.append(tasks)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        executor.run()

    monkeypatch.setattr(runner.DatatroveRunner, "_launch", launch)
    regraft.build_data("recipe.yaml", "slurm/text", executor="slurm", resume=True)
    assert ran == [1]
    assert _files(folder / "slurm/text") == _files(folder / "plain/text")


def test_ray_gets_the_options_of_the_recipe(folder, monkeypatch):
    from datatrove import executor

    ray, calls = ModuleType("ray"), []
    ray.__spec__ = ModuleSpec("ray", None)
    ray.is_initialized = lambda: False
    ray.init = lambda **_: calls.append("init")
    ray.shutdown = lambda: calls.append("shutdown")
    monkeypatch.setitem(sys.modules, "ray", ray)

    class Recorder(executor.LocalPipelineExecutor):
        def __init__(self, workers, cpus_per_task, mem_per_cpu_gb, **common):
            calls.append((workers, cpus_per_task, mem_per_cpu_gb, common["tasks"]))
            super().__init__(workers=1, **common)

    monkeypatch.setattr(executor, "RayPipelineExecutor", Recorder)
    regraft.build_data("recipe.yaml", "ray/text", executor="ray")
    assert calls == ["init", (3, 2, 3, 3), "shutdown"]
    assert _files(folder / "ray/text") == _files(folder / "plain/text")


@pytest.mark.parametrize(
    ("executor", "share", "built", "message"),
    [
        (None, "", True, "--device cuda: torch .* sees no such GPU here"),
        ("local", "", True, "--device cuda: torch .* sees no such GPU here"),
        ("slurm", "", True, "nowhere"),  # the model is missing: a task's machine may have a GPU
        ("slurm", ", share: 0.5", True, "--device cuda: torch .* sees no such GPU here"),
        ("slurm", "", False, "--device cuda: torch .* is built without CUDA"),
    ],
)
def test_a_device_is_checked_where_a_step_runs(
    tmp_path, monkeypatch, executor, share, built, message
):
    _script(tmp_path / "bin" / "sbatch", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    step = f"long_dependency: {{model: ./nowhere{share}}}"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("length: {join: 100}", step) + CLUSTER)
    with pytest.raises(InputError, match=message):
        regraft.build_data(
            tmp_path / "recipe.yaml", None, executor=executor, device="cuda", dry_run=True
        )


def test_the_map_is_made_without_the_gpu_of_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(job, "open_embedder", lambda model, device: device)
    step = "diversity: {model: m, base: b}"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("length: {join: 100}", step))
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    for device in ("cuda", "cpu"):
        assert job._embedder(recipe, device, "slurm") == torch.device("cpu")


def test_an_error_of_a_task_on_a_cluster_names_its_machine(tmp_path, monkeypatch):
    def launch(self, tasks):
        Task(str(self._folder / "calls")).run()

    monkeypatch.setattr(runner.DatatroveRunner, "_launch", launch)
    setting = Setting(tmp_path, "bytes", 0, "cuda")
    tasks = runner.DatatroveRunner("ray", options.Executor(), setting, 1)
    fails = {"a": (options.check_executor, ("none", options.Executor()))}
    with pytest.raises(InputError, match=rf"ray\. The task ran on {socket.gethostname()}\.$"):
        list(tasks.run(fails))


@pytest.mark.parametrize(
    ("executor", "change", "message"),
    [
        ("slum", ("", ""), r"--executor slum \(did you mean slurm\?\): give one of local, slurm"),
        ("slurm", ("partition: long, ", ""), "needs a partition; add executor: {partition: NAME}"),
        ("slurm", ("", ""), "there is no sbatch on this machine"),
        ("ray", ("", ""), "--executor ray needs ray: pip install ray"),
        ("local", ("", ""), r"--executor local needs datatrove: pip install 'regraft\[cluster\]'"),
    ],
)
def test_an_executor_that_cannot_be_used_is_refused(
    tmp_path, monkeypatch, executor, change, message
):
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {"ray": "ray", "local": "datatrove"}.get(executor, "")
    find = options.importlib.util.find_spec
    monkeypatch.setattr(
        options.importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE + CLUSTER.replace(*change))
    with pytest.raises(InputError, match=message):
        regraft.build_data(tmp_path / "recipe.yaml", tmp_path / "out", executor=executor)


def test_the_executor_block_makes_no_other_build(tmp_path):
    texts = (RECIPE, RECIPE + CLUSTER)
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.yaml").write_text(text)
    first, second = (Recipe.read(tmp_path / f"{number}.yaml").canonical() for number in (0, 1))
    assert first == second
