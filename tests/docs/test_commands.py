"""Every command that README, docs, examples and help texts print runs, on toy models.

Commands are found in code blocks, in inline code, in comments of the examples and in help texts.
The names in them (models of the Hub, RECIPE, OUT) are replaced by toys; a name that nobody replaced
makes its command fail, so a new page needs its names here.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from regraft import cli
from regraft.data.toy_language import Mix, training_row
from regraft.demo.job import run_demo
from regraft.demo.recipes import Plan

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
FIRST = ("regraft", "torchrun", "python", "make", "pip")

PLAN = Plan(
    base_steps=(2, 1), base_rows=4, derivative_steps=1, extension=((1, 256, 2),), target=256,
    lengths=(64, 256), questions=16, prose_rows=2,
)  # fmt: skip

MODELS = {
    "base": "demo-out/base", "extended": "demo-out/extended", "derivative": "demo-out/derivative",
    "meta-llama/Meta-Llama-3-8B": "demo-out/base",
    "meta-llama/Meta-Llama-3-8B-Instruct": "demo-out/derivative",
    "gradientai/Llama-3-8B-262k": "demo-out/extended",
    "NousResearch/Hermes-2-Pro-Llama-3-8B": "demo-out/derivative",
    "cognitivecomputations/dolphin-2.9-llama3-8b": "demo-out/base",
    "hermes": "demo-out/derivative", "llama-262k": "demo-out/extended",
    "hermes-262k": "demo-out/graft-rank-16", "MODEL": "demo-out/extended",
    "OUT": "demo-out/adapter-rank-16",
    "A4": "demo-out/adapter-rank-4", "A16": "demo-out/adapter-rank-16",
    "ctx-lora": "demo-out/adapter-rank-16", "toy-1k": "demo-out/base",
    "./long-context-adapter": "demo-out/adapter-rank-16", "toy-4k-lora": "demo-out/adapter-rank-4",
    "llama-3-8b-256k-lora": "demo-out/adapter-rank-4", "./toy-1k": "demo-out/base",
}  # fmt: skip
ROLES = {"recipient": "demo-out/derivative", "donor": "demo-out/extended",
         "graft": "demo-out/graft-rank-16"}  # fmt: skip
RECIPES = {"graft": "examples/graft-long-context.yaml",
           "merge": "examples/merge-long-context.yaml", "train": "examples/extend-toy.yaml",
           "plan": "examples/extend-toy.yaml", "--probe": "examples/extend-toy.yaml"}  # fmt: skip
LENGTHS = {"4k": "256", "256k": "256", "64k": "64", "512k": "128", "1M": "256", "1k": "128",
           "512": "128", "8k": "64"}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A printed command. page: where it is printed."""

    page: Path
    text: str


def pages() -> Iterator[Command]:
    """The commands of README, CONTRIBUTING and docs."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.S | re.M)
        text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        blocks += re.findall(r"(?:^ {4}\S.*\n)+", text, re.M)
        for block in blocks:
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                yield from found(page, line)
        for code in re.findall(r"`([^`]+)`", text):
            if len(code.split()) > 2:  # else it is the name of a command in a sentence
                yield from found(page, " ".join(code.split()))


def examples() -> Iterator[Command]:
    """The commands in the comments of the examples."""
    for page in EXAMPLES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                yield from found(page, line[1:])


def helps() -> Iterator[Command]:
    """The commands in the help texts."""
    for name, command in typer.main.get_command(cli.app).commands.items():
        text = re.sub(r"\\\n\s*", "", command.help or "")
        for line in re.findall(r"^[^:\n]*: ((?:regraft|torchrun) .*)", text, re.M):
            yield from found(ROOT / "regraft" / "commands" / f"{name.replace('-', '_')}.py", line)


def found(page: Path, line: str) -> Iterator[Command]:
    """The command on a line, without prompt and comment."""
    line = re.split(r"\s{2,}prints |\s#", line.strip().removeprefix("$ "))[0].strip()
    if line.split(" ")[0] in FIRST and len(line.split()) > 1:
        yield Command(page, line)


COMMANDS = list(dict.fromkeys([*pages(), *examples(), *helps()]))
RUN = [one for one in COMMANDS if re.match(r"regraft |torchrun ", one.text)]
OTHERS = [one for one in COMMANDS if one not in RUN]


def test_commands_are_found_where_they_are_printed():
    names = {one.page.name for one in COMMANDS}
    assert {"README.md", "train.md", "merge.md", "evaluate.md", "extend-toy.yaml"} <= names
    assert "theta.py" in names
    for verb in ("extract-lora", "apply", "merge", "train", "evaluate", "plan", "theta", "inspect"):
        assert any(f"regraft {verb} " in one.text for one in RUN), verb


@pytest.mark.parametrize("command", OTHERS, ids=lambda one: one.text)
def test_scripts_and_targets_exist(command):
    """Benchmarks run in tests/benchmarks, make and pip need a network."""
    words = command.text.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[:2] == ["pip", "install"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """demo-out of a demo of a few steps, the examples on toys, and texts for them."""
    folder = tmp_path_factory.mktemp("docs")
    run_demo(folder / "demo-out", seed=5, plan=PLAN)
    (folder / "examples").mkdir()
    for page in EXAMPLES:
        (folder / "examples" / page.name).write_text(toy_recipe(page.read_text()))
    rng = random.Random(0)
    for name in ("slimpajama-long", "books", "short-mix", "repositories"):
        (folder / "data" / name).mkdir(parents=True)
        with (folder / "data" / name / "text.jsonl").open("w") as file:
            for _ in range(60):
                words = training_row(rng, 300, Mix(prose=0.5, questions=0.5)).words[1:]
                file.write(json.dumps({"text": " ".join(words)}) + "\n")
    questions = [{"question": "where is the lantern ?", "id": "q1", "is_impossible": False,
                  "answers": [{"text": "river", "answer_start": 4}]}]  # fmt: skip
    paragraphs = [{"context": "the river paints the lantern .", "qas": questions},
                  *({"context": f"the orchard hides the barrel number {n} .", "qas": []}
                    for n in range(40))]  # fmt: skip
    data = {"data": [{"title": "t", "paragraphs": paragraphs}]}
    (folder / "dev-v2.0.json").write_text(json.dumps(data))
    return folder


def toy_recipe(text: str) -> str:
    """A recipe of the examples for the models of the toy demo, and for seconds."""
    names = sorted(MODELS, key=len, reverse=True)
    text = re.sub(
        rf"((?:model|from|base|extended): |  - )({'|'.join(map(re.escape, names))})(?=[\s,}}]|$)",
        lambda match: match[1] + MODELS[match[2]], text,
    )  # fmt: skip
    text = re.sub(r"(length|window): (\w+)", lambda m: f"{m[1]}: {LENGTHS.get(m[2], m[2])}", text)
    text = re.sub(r"evaluate: .*", "evaluate: {suite: toy, haystack: world, items: 2, lengths: "
                  "[64, 128]}", text)  # fmt: skip
    text = re.sub(r"(?<!max_)\b(steps|tokens): \w+", "steps: 1", text)
    text = re.sub(r"\b(batch|every|rows): \d+", r"\1: 1", text)
    text = re.sub(r"(documents): \d+", r"\1: 40", text)
    text = re.sub(r"(warmup): \d+", r"\1: 0", text)
    text = re.sub(r"positions: .*", "positions: {kind: multi_chunk, window: 64, least: 16}", text)
    text = re.sub(r"parallel: .*", "", text)
    text = re.sub(r"layer_range: \[(\d+), (\d+)\]", "layer_range: [0, 2]", text)
    return text.replace("needle: {}", "needle: {rows: 1}").replace(
        "held_out: 0.03", "held_out: 0.1"
    )


def toy_command(text: str) -> list[str]:
    """The arguments of regraft, on toys: models, recipes and lengths that are here."""
    words = shlex.split(text)
    if words[0] == "torchrun":  # what several processes do is tested elsewhere
        words = words[words.index("regraft") :]
    verb, *words = [word for word in words[1:] if word != ".."]
    result = [verb]
    skip = False
    for before, word in zip([verb, *words], words, strict=False):
        if skip or word in ("--judge", "--judge-model", "--context-parallel"):
            skip = not skip
            continue
        name, sign, value = word.partition("=")
        if before == "-o":
            result.append(word)
        elif word in ("RECIPE", "RECIPE.yaml", "recipe.yaml"):
            result.append(RECIPES["--probe" if before == "--probe" else verb])
        elif sign and name in ROLES:
            result.append(f"{name}={ROLES[name] if value == '..' else MODELS.get(value, value)}")
        else:
            result.append(MODELS.get(word, word))
    if "--probe" in result:
        result = [*(LENGTHS.get(word, word) for word in result), "--base", "70", "--steps", "1"]
    if verb == "push" and "--dry-run" not in result:
        result.append("--dry-run")
    if verb == "export":
        result.append("--no-tokenizer")  # toys speak in whole words
        if any("adapter" in word for word in result) and "--base" not in result:
            result += ["--base", "demo-out/base"]  # else found by its id
    if verb == "evaluate":
        if "--adapter" in result and not any(word.startswith("base=") for word in result):
            result.insert(result.index("--adapter"), "base=demo-out/base")  # else found by its id
        result += ["--items", "2"]
        if "--lengths" in result:
            result[result.index("--lengths") + 1] = "64,128"
        else:
            result += ["--lengths", "128", "--haystack", "world"]
    return result


TOY_COMMANDS = {tuple(toy_command(command.text)): command for command in RUN}


@pytest.mark.parametrize("words", TOY_COMMANDS, ids=shlex.join)
def test_the_command_runs(words, workplace, monkeypatch, tmp_path):
    command = TOY_COMMANDS[words]
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("regraft.demo.recipes.Plan", lambda: PLAN)
    arguments = list(words)
    if "-o" in arguments:
        arguments[arguments.index("-o") + 1] = str(tmp_path / "out")
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, f"{command.page.name}: {command.text}\n{done.output[-2000:]}"
