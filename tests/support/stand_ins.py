"""Toys for what the documentation names: Hub ids, folders, recipes, lengths, texts."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluated import toy
from models import changed, load, save
from printed import EXAMPLES, ROOT
from served import VLLM, Reply, ToyServer, readable_toy

from regraft.data.toy_language import Mix, training_row, write_tokenizer

MODELS = {
    "base": "demo-out/trained/base", "extended": "demo-out/trained/extended",
    "derivative": "demo-out/trained/shouter",
    "meta-llama/Meta-Llama-3-8B": "demo-out/trained/base",
    "meta-llama/Meta-Llama-3-8B-Instruct": "demo-out/trained/shouter",
    "gradientai/Llama-3-8B-262k": "demo-out/trained/extended",
    "NousResearch/Hermes-2-Pro-Llama-3-8B": "demo-out/trained/shouter",
    "cognitivecomputations/dolphin-2.9-llama3-8b": "demo-out/trained/base",
    "hermes": "demo-out/trained/shouter", "llama-262k": "demo-out/trained/extended",
    "hermes-262k": "demo-out/models/shouter", "MODEL": "demo-out/trained/extended",
    "OUT": "demo-out/adapters/rank-16",
    "A4": "demo-out/adapters/rank-4", "A16": "demo-out/adapters/rank-16",
    "ctx-lora": "demo-out/adapters/rank-16", "adapter": "demo-out/adapters/rank-16",
    "toy-1k": "demo-out/trained/base", "./toy-1k": "demo-out/trained/base",
    "./long-context-adapter": "demo-out/adapters/rank-16",
    "toy-4k-lora": "demo-out/adapters/rank-4",
    "llama-3-8b-256k-lora": "demo-out/adapters/rank-4",
}  # fmt: skip
ROLES = {"recipient": "demo-out/trained/shouter", "donor": "demo-out/trained/extended",
         "graft": "demo-out/models/shouter"}  # fmt: skip
RECIPES = {"graft": "examples/graft-long-context.yaml",
           "data": "examples/data-prolong.yaml",
           "merge": "examples/merge-long-context.yaml", "train": "examples/extend-toy.yaml",
           "plan": "examples/extend-toy-lora.yaml",
           "--probe": "examples/extend-toy.yaml"}  # fmt: skip
LENGTHS = {"4k": "256", "256k": "128", "64k": "64", "512k": "128", "1M": "256", "1k": "128",
           "512": "128", "8k": "64"}  # fmt: skip

_LONG = {"rope_theta": 160000.0, "max_position_embeddings": 1024}


def make_workplace(folder: Path) -> Path:
    """Models and adapters as `regraft demo` leaves them, examples on toys, and texts for them."""
    from regraft.adapters.apply.apply import apply_lora
    from regraft.adapters.extract.extract import extract_lora

    demo = folder / "demo-out"
    trained = demo / "trained"
    base = toy(trained / "base")
    config, weights = json.loads((base / "config.json").read_text()), load(base)
    for name, more, change in (
        ("extended", _LONG, changed(weights, rank=4, size=0.03, seed=1)),
        ("shouter", {}, changed(weights, rank=None, size=0.02, seed=2)),
    ):
        write_tokenizer(save(trained / name, {**config, **more}, change))
    for rank in (4, 16):
        adapter = demo / "adapters" / f"rank-{rank}"
        extract_lora(base, trained / "extended", adapter, rank=rank, verify=False)
    apply_lora(adapter, trained / "shouter", demo / "models" / "shouter")
    readable_toy(demo / "served")
    (folder / "examples").mkdir()
    for page in EXAMPLES:
        (folder / "examples" / page.name).write_text(toy_recipe(page.read_text()))
    shutil.copy(ROOT / "examples" / "chats.jsonl", folder / "examples")
    for name in ("docs", "regraft"):  # sources of data recipes
        (folder / name).symlink_to(ROOT / name)
    _write_texts(folder)
    return folder


def _write_texts(folder: Path) -> None:
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


@contextmanager
def servers(toys: Path) -> Iterator[dict[str, str]]:
    """The options that name a server -> the address of a local one. The judge says yes."""
    verdict = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
    with ToyServer(toys / "demo-out" / "served", VLLM).running() as served:
        judge = ToyServer(toys / "demo-out" / "served", VLLM)
        judge.fault = lambda number: Reply(body=verdict)
        with judge.running():
            yield {"--endpoint": served.url, "--judge": judge.url}


def toy_recipe(text: str) -> str:
    """A recipe of the examples for the toys, and for seconds."""
    names = sorted(MODELS, key=len, reverse=True)
    text = re.sub(
        rf"((?:model|from|base|extended|teacher): |  - )({'|'.join(map(re.escape, names))})"
        r"(?=[\s,}]|$)",
        lambda match: match[1] + MODELS[match[2]], text,
    )  # fmt: skip
    text = re.sub(r"(length|window): (\w+)", lambda m: f"{m[1]}: {LENGTHS.get(m[2], m[2])}", text)
    text = re.sub(
        r"evaluate: .*", "evaluate: {suite: toy, haystack: world, items: 2, lengths: [64]}", text
    )
    text = re.sub(r"(?<!max_)\b(steps|tokens): \w+", "steps: 1", text)
    text = re.sub(r"\b(batch|every|rows): \d+", r"\1: 1", text)
    text = re.sub(r"(documents): \d+", r"\1: 40", text)
    text = re.sub(r"(words): \d{3,}", r"\1: 260", text)
    text = re.sub(r"(warmup): \d+", r"\1: 0", text)
    text = re.sub(r"positions: .*", "positions: {kind: multi_chunk, window: 64, least: 16}", text)
    text = re.sub(r"parallel: .*", "", text)
    text = re.sub(r"layer_range: \[(\d+), (\d+)\]", "layer_range: [0, 2]", text)
    text = re.sub(r"ranks: \[4, 16\]\nscales: .*", "ranks: [2, 4]", text)
    return text.replace("needle: {}", "needle: {rows: 1}").replace(
        "held_out: 0.03", "held_out: 0.1"
    )


def regraft_words(text: str) -> list[str]:
    """The arguments of regraft in a command of it, or of it under torchrun."""
    words = shlex.split(text)
    if words[0] == "torchrun":
        words = words[words.index("regraft") :]
    return words[1:]


def toy_words(text: str) -> list[str]:
    """The arguments of regraft, on toys: models, recipes and lengths that are here."""
    verb, *words = [word for word in regraft_words(text) if word != ".."]
    result = [verb]
    for before, word in zip([verb, *words], words, strict=False):
        name, sign, value = word.partition("=")
        if before == "-o":
            result.append("OUT")
        elif word in ("RECIPE", "RECIPE.yaml", "recipe.yaml"):
            result.append(RECIPES["--probe" if before == "--probe" else verb])
        elif sign and name in ROLES:
            result.append(f"{name}={ROLES[name] if value == '..' else MODELS.get(value, value)}")
        elif sign and value in MODELS:
            result.append(f"{name}={MODELS[value]}")
        else:
            result.append(MODELS.get(word, word))
    return result + list(_more_words(verb, result))


def _more_words(verb: str, words: list[str]) -> list[str]:
    """What the toys need beside a command's own arguments; lengths are replaced in `words`."""
    more: list[str] = []
    if "--probe" in words:
        words[:] = [LENGTHS.get(word, word) for word in words]
        more += ["--base", "70", "--steps", "1"]
    if verb == "push" and "--dry-run" not in words:
        more.append("--dry-run")
    if "--trace" in words:  # every device takes a second
        words[words.index("--gpus") + 1] = "1xH100-80"
    if "--search" in words:
        words[words.index("--search") + 1] = "4"
    if "--budget" in words:
        words[words.index("--budget") + 1] = "30kB"
    if "--calibrate" in words:
        words[words.index("--calibrate") + 1] = "data/books/text.jsonl"
        for option, value in (("--calibrate-length", "64"), ("--calibrate-tokens", "256")):
            if option in words:
                words[words.index(option) + 1] = value
            else:
                more += [option, value]
    if verb == "export":
        more.append("--no-tokenizer")  # toys speak in whole words
        if any("adapter" in word for word in words) and "--base" not in words:
            more += ["--base", "demo-out/trained/base"]  # else found by its id
    if verb == "evaluate" and "--endpoint" in words:
        for option, value in (("--endpoint-model", "org/toy"), ("--tokenizer", "demo-out/served"),
                              ("--lengths", "300")):  # fmt: skip
            words[words.index(option) + 1] = value
        more += ["--suite", "needle", "--items", "2", "--depths", "2"]
    elif verb == "evaluate":
        if "--adapter" in words and not any(word.startswith("base=") for word in words):
            # else found by its id
            words.insert(words.index("--adapter"), f"base={MODELS['base']}")
        more += ["--items", "2", "--texts", "1"]
        if "--questions-per-text" in words:  # more needles do not fit in the lengths of toys
            words[words.index("--questions-per-text") + 1] = "2"
        if "--lengths" in words:
            words[words.index("--lengths") + 1] = "64,128"
        else:
            more += ["--lengths", "128"]
        if "--haystack" not in words:
            more += ["--haystack", "world"]
    return more
