"""The fuzzer detects what it counts, continues where it stopped, and counts none in a short run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAND_IN = """
import json, os, sys, time, types
from pathlib import Path
from fuzzing import sandbox

def write(path):
    if not Path(path).parent.exists():
        Path(path).parent.mkdir()
    Path(path).write_text("x")

def fill():
    held = []
    while True:
        held.append(bytearray(1 << 24))

ways = {
    "write out/x": lambda: write("out/x"),
    "write ../x": lambda: write("../x"),
    "write in/x": lambda: write("in/x"),
    "link": lambda: (os.mkdir("out"), os.symlink("../..", "out/up"), write("out/up/y")),
    "remove": lambda: os.remove("in/a"),
    "hang": lambda: time.sleep(60),
    "fill": fill,
    "signal": os.abort,
    "raise": lambda: 1 / 0,
    "exit": lambda: sys.exit(2),
}
cli = types.ModuleType("regraft.cli")
cli.main = lambda: ways[" ".join(sys.argv[1:])]()
sys.modules["regraft.cli"] = cli
inputs, cache, folder = (Path(name).resolve() for name in ("inputs", "cache", "run"))
cache.mkdir()
write(inputs / "a")
for way in ways:
    sandbox.fresh_folder(folder, inputs, cache)
    before = sandbox.listing(folder / "in")
    outcome = sandbox.run(way.split(" "), folder, allowed=("out", "tmp", "log-"),
                          limit=1.0 if way == "hang" else 50.0, memory=10**9)
    print(json.dumps([way, outcome.code, [line.split()[0] for line in outcome.outside],
                      sandbox.listing(folder / "in") != before, outcome.peak_bytes > 9 * 10**8,
                      "Traceback" in outcome.stderr]))
"""


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])},
    )  # fmt: skip


def test_a_short_run_ends_in_sentences_and_continues_where_it_stopped(tmp_path: Path) -> None:
    earlier = {
        "number": 0, "seed": 0, "commit": "before", "command": "inspect in/base",
        "file": "base/config.json", "damage": "none", "outcome": "done", "code": 0,
        "message": "", "seconds": 1.0, "peak_bytes": 1,
    }  # fmt: skip
    results = tmp_path / "out" / "results.jsonl"
    results.parent.mkdir()
    results.write_text(json.dumps(earlier) + "\n" + '{"number": 1, "se')  # killed in a line
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.jsonl").write_text(json.dumps({**earlier, "seed": 3}) + "\n")
    done = run(
        BENCHMARKS / "fuzz.py", "--count", "16", "--match", "^inspect in/base$|^apply in/plain",
        "--workers", "2", "-o", "out", "--table", "table.md", "--also", "other", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(entry["number"] for entry in entries) == list(range(16))
    assert entries[0] == earlier
    assert {entry["outcome"] for entry in entries} == {"refused", "done"}
    assert "--seed 0, 3: 17 mutations at before (2)" in (tmp_path / "table.md").read_text()
    again = run(
        BENCHMARKS / "fuzz.py", "--count", "0", "-o", "none", "--also", "out", "--table", "two.md",
        folder=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    text = (tmp_path / "two.md").read_text()
    assert "--seed 0: 16 mutations at" in text
    assert (out_environment := (tmp_path / "out" / "environment.txt").read_text().strip()) in text
    assert "transformers" in out_environment


def test_the_sandbox_sees_what_a_command_does(tmp_path: Path) -> None:
    done = run("-c", STAND_IN, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    # way: code, written outside, input changed, much memory, traceback
    outcomes = map(json.loads, done.stdout.splitlines())
    assert {way: rest for way, *rest in outcomes} == {
        "write out/x": [0, [], False, False, False],
        "write ../x": [0, ["open"], False, False, False],
        "write in/x": [0, ["open"], True, False, False],
        "link": [0, ["open"], False, False, False],
        "remove": [0, ["os.remove"], True, False, False],
        "hang": [None, [], False, False, False],
        "fill": [-9, [], False, True, False],
        "signal": [-6, [], False, False, False],
        "raise": [99, [], False, False, True],
        "exit": [2, [], False, False, False],
    }


@pytest.mark.parametrize(
    ("outcome", "code", "stderr", "stdout"),
    [
        ("done", 0, "", '{"a": 1}'),
        ("refused", 2, "regraft: a warning: x\nregraft: config.json is broken.\n", ""),
        ("several lines", 2, "regraft: broken:\n  here\n", ""),
        ("no message", 1, "", ""),
        ("unknown error", 1, "regraft: an error that regraft does not know (X)\n", ""),
        ("traceback", 1, "Traceback (most recent call last):\n", ""),
        ("traceback", 99, "", ""),
        ("signal", -7, "", ""),
        ("hang", None, "", ""),
        ("stdout is no JSON", 0, "", '{"a": NaN}'),
        ("stdout is no JSON", 0, "", "Loading\n{}"),
    ],
)
def test_outcomes_are_distinguished(
    monkeypatch: pytest.MonkeyPatch, outcome: str, code: int | None, stderr: str, stdout: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fuzzing.report import classify
    from fuzzing.sandbox import Outcome

    ended = Outcome(code, stdout, stderr, 1.0, 10**8, [])
    assert classify(ended, "inspect in/base --json", False, []) == outcome
    assert classify(Outcome(0, "{}", "", 1.0, 3 * 10**9, []), "x", False, []) == "memory"
    assert classify(Outcome(0, "{}", "", 1.0, 1, []), "x", False, ["open /a"]) == ("wrote outside")
    assert classify(Outcome(0, "{}", "", 1.0, 1, []), "x", True, []) == "changed an input"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.yaml", "a.safetensors", "a.txt"])
def test_a_seed_gives_the_same_damage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from fuzzing.mutations import mutate

    header = b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    whole = {
        ".safetensors": len(header).to_bytes(8, "little") + header + bytes(range(16)),
        ".yaml": b"model: a\nstages: [{length: 8}]\n",
    }.get(Path(name).suffix, b'{"a": [1, 2.5, {"b": "c"}], "d": null}\n')
    path = tmp_path / name
    changed = 0
    for number in range(60):
        ends = []
        for _ in range(2):
            _clear(path)
            path.write_bytes(whole)
            words = mutate(path, random.Random(number))
            ends.append((words, path.read_bytes() if path.is_file() else None))
        assert ends[0] == ends[1]
        changed += ends[0][1] != whole
    _clear(path)
    assert changed > 45  # an edit may put the same value there


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
