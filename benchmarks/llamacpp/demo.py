"""The demo's models in llama.cpp: the flags beyond the old context, and the graft quantised."""

from __future__ import annotations

import argparse
import json
import random
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from llamacpp.runner import Llama, export
from regraft.adapters.serving import llamacpp_flags
from regraft.data.toy_language import IDS, exam_row, needle_count, prose_row
from regraft.rope import ContextSpec
from regraft.units import format_tokens


def lengths_of(trained: Path) -> list[int]:
    longest = context_of(trained / "extended").max_position_embeddings
    shortest = context_of(trained / "base").max_position_embeddings
    return [shortest << n for n in range(12) if shortest << n <= longest]


def context_of(model: Path) -> ContextSpec:
    return ContextSpec.from_config(json.loads((model / "config.json").read_text()))


def answered(llama: Llama, model: Path, length: int, questions: int, **more: Any) -> float:
    """The share of questions answered in rows of `length` words."""
    rng = random.Random(f"llama.cpp {length}")
    count = needle_count(length)
    rows = [exam_row(rng, length) for _ in range(max(1, questions // count))]
    ids = np.array([[IDS[word] for word in row.words] for row in rows])
    best = llama.run(model, ids, **more)["best"]
    right = sum(
        bool((best[n, at - 1 : at + 1] == ids[n, at : at + 2]).all())
        for n, row in enumerate(rows) for at in row.answers
    )  # fmt: skip
    return right / (count * len(rows))


def make_graft(trained: Path, out: Path) -> tuple[Path, Path]:
    """(adapter, graft) of rank 16 from the demo's models."""
    adapter, graft = out / "adapter", out / "graft"
    regraft.extract_lora(
        trained / "base", trained / "extended", adapter, rank=16, verify=False, overwrite=True
    )
    regraft.apply_lora(adapter, trained / "shouter", graft, overwrite=True)
    return adapter, graft


def flags(llama: Llama, options: argparse.Namespace, out: Path) -> str:
    trained: Path = options.demo.resolve() / "trained"
    adapter, _ = make_graft(trained, out)
    lora = export(adapter, out / "adapter.gguf", base=trained / "base")
    recipient = export(trained / "shouter", out / "derivative.gguf", tokenizer=False)
    line = llamacpp_flags(context_of(trained / "extended"), "adapter.gguf")
    words = shlex.split(line)
    from_flags = {
        "rope_freq_base": float(words[words.index("--rope-freq-base") + 1]),
        "n_ctx": int(words[words.index("-c") + 1]),
    }
    lengths = lengths_of(trained)
    hidden = json.loads((trained / "base" / "config.json").read_text())["hidden_size"]
    rows = [
        "## The flags: a prompt beyond the old context\n",
        f"The toy derivative (trained on {lengths[0]} tokens) in float16, {options.questions} "
        f"questions at each length; hidden size {hidden}. Length and RoPE base are taken from the "
        "adapter's flags and given to llama-cpp-python; llama-server is not run, so --override-kv "
        f"is not exercised here:\n\n    {line}\n",
        head("in llama.cpp", lengths),
    ]
    settings: dict[str, dict[str, Any]] = {
        "derivative": {"n_ctx": from_flags["n_ctx"]},
        "derivative, the flags' RoPE": from_flags,
        "derivative + adapter, no flags": {"n_ctx": from_flags["n_ctx"], "lora": lora},
        "derivative + adapter, flags": {**from_flags, "lora": lora},
    }
    for name, more in settings.items():
        shares = [answered(llama, recipient, n, options.questions, **more) for n in lengths]
        rows.append(cells(name, shares, "{:.2f}"))
    return "\n".join(rows)


def head(first: str, lengths: list[int]) -> str:
    names = " | ".join(format_tokens(n) for n in lengths)
    return f"| {first} | {names} |\n|---|{'--:|' * len(lengths)}"


def cells(name: str, values: Sequence[float], form: str) -> str:
    return f"| {name} | {' | '.join(form.format(value) for value in values)} |"


def quantised(llama: Llama, options: argparse.Namespace, out: Path) -> str:
    from gguf import GGUFReader

    trained: Path = options.demo.resolve() / "trained"
    _, graft = make_graft(trained, out)
    lengths = lengths_of(trained)
    files = {"float16": export(graft, out / "graft.gguf", tokenizer=False)}
    for kind in ("Q8_0", "Q4_0", "Q4_K_M"):
        files[kind] = out / f"graft-{kind}.gguf"
        llama.call(op="quantize", source=files["float16"], target=files[kind], type=kind)
    rng = random.Random("prose")
    count = 2 if options.quick else 32
    prose = [[IDS[word] for word in prose_row(rng, lengths[-1]).words] for _ in range(count)]
    answers, losses, kinds = [], [], []
    for name, file in files.items():
        types = Counter(
            t.tensor_type.name for t in GGUFReader(file).tensors if len(t.shape) > 1
        ).most_common()
        kinds.append(f"{name}: {', '.join(f'{n} {kind}' for kind, n in types)}")
        shares = [answered(llama, file, n, options.questions) for n in lengths]
        answers.append(cells(name, shares, "{:.2f}"))
        nll = llama.run(file, prose)["nll"].mean(0)
        edges = [0, *lengths]
        parts = [nll[a : b - 1].mean() for a, b in zip(edges, lengths, strict=False)]
        losses.append(cells(name, parts, "{:.4f}"))
    return "\n".join(
        [
            "## The graft quantised\n",
            f"Matrices by type: {'; '.join(kinds)}.\n",
            f"Questions answered, {options.questions} at each length:\n",
            head("graft, rank 16", lengths),
            *answers,
            f"\nNLL of prose in nats per token by position (up to), {count} rows:\n",
            head("graft, rank 16", lengths),
            *losses,
        ]
    )
