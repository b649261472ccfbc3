"""The commands of `faults.py`: their inputs, their lines, and the outputs that they write."""

from __future__ import annotations

import shutil
from pathlib import Path

import models
from evaluated import toy
from forked import Children

from regraft.checkpoint.write.manifest import MANIFEST, foreign_files, read_manifest, write_manifest

COMMANDS = (
    "extract-lora", "apply", "merge", "merge --as-adapter", "train", "evaluate", "demo", "graft",
    "export",
)  # fmt: skip
TIMED = ("metrics.jsonl", "watch.jsonl", "curves.png", "README.md", "train.json", MANIFEST)

MERGE = """\
merge_method: ties
base_model: {0}/base
models:
  - {{model: {0}/extended, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {0}/derivative, parameters: {{weight: 0.4, density: 0.7}}}}
context: {{from: {0}/extended}}
"""
MERGE_ADAPTERS = """\
merge_method: task_arithmetic
base_model: {0}/base
models:
  - {{model: {0}/adapter, parameters: {{weight: 0.6}}}}
  - {{model: {0}/adapter-2, parameters: {{weight: 0.4}}}}
context: {{from: {0}/adapter}}
"""
TRAINING = """\
model: {0}/toy
stages: [{{length: 64, steps: 3, batch: 1, rate: 1e-3}}]
data:
  cache: {0}/cache
  sources: [{{name: a, synthetic: notes, words: 64, documents: 9, rows: packed}}]
save_every: 1
"""
GRAFT = """\
base: {0}/toy
extended: {0}/toy-extended
targets: [{0}/toy-derivative]
ranks: [2]
scales: {1}
recover:
  recover: {{teacher: target, drift: null}}
  stages: [{{length: 64, steps: 1, rate: 1e-3}}]
  data:
    held_out: 0.2
    sources: [{{name: a, synthetic: notes, words: 66, documents: 40, rows: packed}}]
evaluate: {{suite: toy, haystack: world, items: 2, lengths: [64]}}
"""


class Inputs:
    """The inputs of all commands, in a folder of their own."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.folder, self.children = folder, children
        shutil.rmtree(folder, ignore_errors=True)
        models.family(folder)
        toy(folder / "toy")
        for name, seed in (("toy-extended", 1), ("toy-derivative", 2)):
            shutil.copytree(folder / "toy", folder / name)
            state = models.changed(models.load(folder / "toy"), rank=2, size=0.05, seed=seed)
            models.save_file(state, folder / name / "model.safetensors", {"format": "pt"})
        for name, text in (
            ("models", MERGE.format(folder)),
            ("adapters", MERGE_ADAPTERS.format(folder)),
            ("train", TRAINING.format(folder)),
            ("graft", GRAFT.format(folder, "[0.5, 1]")),
            ("earlier-graft", GRAFT.format(folder, "[0.5, 0.8]")),
        ):
            (folder / f"{name}.yaml").write_text(text)
        for name, seed in (("adapter", "0"), ("adapter-2", "1")):
            self._run(*self.line("extract-lora", folder / name), "--seed", seed)

    def line(self, command: str, out: Path) -> list[str]:
        """The command line that writes `out`."""
        at = self.folder
        words = {
            "extract-lora": ["extract-lora", at / "base", at / "extended", "--rank", 4],
            "apply": ["apply", at / "adapter", at / "derivative", "--verify"],
            "merge": ["merge", at / "models.yaml"],
            "merge --as-adapter": ["merge", at / "adapters.yaml", "--as-adapter"],
            "train": ["train", at / "train.yaml", "--threads", 1, "--device", "cpu"],
            "evaluate": ["evaluate", f"m={at / 'toy'}", "--suite", "toy,perplexity", "--haystack",
                         "world", "--lengths", 64, "--items", 2, "--texts", 1],
            "demo": ["demo"],
            "graft": ["graft", at / "graft.yaml", "--device", "cpu"],
            "export": ["export", at / "extended", "--no-tokenizer", "--verify"],
        }[command]  # fmt: skip
        return [str(word) for word in (*words, "-q", "-o", out)]

    def write_earlier_output(self, command: str, out: Path) -> str:
        """Write an output that `command` may replace; returns the option with which it does.

        Of a graft it is a job by another recipe, of which the new one keeps some stages.
        """
        if command == "graft":
            line = self.line(command, out)
            line[1] = str(self.folder / "earlier-graft.yaml")
            self._run(*line)
            return "--resume"
        if command == "export":
            self._run(*self.line(command, out), "--dtype", "float32")
        else:
            out.mkdir()
            (out / "old.txt").write_text("an earlier output")
            write_manifest(out)
        return "--overwrite"

    def _run(self, *line: str) -> None:
        done = self.children.run(*line)
        assert done["code"] == 0, (line, done["err"])


def line_to_continue(command: str, line: list[str]) -> list[str]:
    """The line that continues an interrupted one: graft and demo continue by themselves."""
    return line if command in ("demo", "graft") else [*line, "--resume"]


def output_files(out: Path) -> dict[str, bytes]:
    """Name -> bytes of every file of an output, which may be a single file."""
    return {out.name: out.read_bytes()} if out.is_file() else models.contents(out)


def comparable_files(command: str, out: Path) -> dict[str, bytes]:
    """The files that are the same in every run; trainings write others that hold times."""
    files = output_files(out)
    if command not in ("train", "demo", "graft"):
        return files
    return {name: data for name, data in files.items() if not _has_times(command, Path(name))}


def _has_times(command: str, name: Path) -> bool:
    if command in ("demo", "graft") and name.parts[0] not in ("trained", "recovered"):
        return False
    return name.name in TIMED or "tensorboard" in name.parts


def broken_stages(out: Path) -> list[str]:
    """The folders of stages in a graft's OUT that are not whole."""
    broken = []
    for manifest in out.glob(f"*/*/{MANIFEST}"):
        folder = manifest.parent
        if folder.name.startswith("."):  # staging
            continue
        entries = read_manifest(folder)
        present = entries is not None and all((folder / name).is_file() for name in entries)
        if not present or foreign_files(folder):
            broken.append(str(folder.relative_to(out)))
    return broken
