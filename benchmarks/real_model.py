"""A pretrained model extended to four times its context, and the change grafted on a derivative.

    python benchmarks/real_model.py MODEL [--text FILE] [-o bench-out]

MODEL is a folder or Hub id, small enough to be trained here. Extended: all its weights are tuned on
rows of four times its context, theta by the scaling law, on text the model writes itself (its
pretraining data is rarely at hand, and text from FILE would be learned along with the length).
Derivative: MODEL tuned on the first nine tenths of FILE, in rows of its own length. Then
`extract_lora` and `apply` at several ranks, and the NLL by position on the last tenth of FILE, on
which nothing was trained; also for the derivative with a sliding window, the control that needs no
long context. Without --text the sources of Python's standard library are FILE.

Prints a table and writes it with a figure to benchmarks/results/real_model.{md,png}.
"""

from __future__ import annotations

import argparse
import lzma
import os
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from harness import add_quick, environment, record
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import regraft
from regraft import drawing
from regraft.rope import ContextSpec, scaling_law
from regraft.units import format_tokens

FACTOR = 4
HELD_OUT = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, help="a text file, .xz or not")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--derivative-steps", type=int, default=110)
    parser.add_argument("--extension-steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--written", type=int, default=250_000, help="tokens the model writes")
    parser.add_argument("--rows", type=int, default=32, help="rows the NLL is measured on")
    add_quick(parser)
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.written, options.rows = [2], 2000, 2
        options.derivative_steps = options.extension_steps = 1
    torch.manual_seed(options.seed)
    out: Path = options.out.resolve() / "real-model"
    out.mkdir(parents=True, exist_ok=True)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    spec = ContextSpec.from_config(AutoConfig.from_pretrained(options.model).to_dict())
    trained, target = spec.max_position_embeddings, FACTOR * spec.max_position_embeddings
    theta = scaling_law(spec.theta, trained, target)
    long = ContextSpec({**spec.rope_parameters, "rope_theta": float(round(theta))}, target)
    text, source = read_text(options.text)
    cut = int(len(text) * (1 - HELD_OUT))
    learned, unseen = (tokens(tokenizer, part) for part in (text[:cut], text[cut:]))
    exam = rows_of(unseen, target)[: options.rows]

    folders: dict[str, Path] = {}

    def save(name: str, model: Any) -> None:
        folders[name] = out / name.replace(", ", "-").replace(" ", "-")
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])

    base = load(options.model, spec)
    save("base", base)
    began = time.perf_counter()
    written = sample_text(base, tokenizer, options.written, trained)
    log(f"wrote {len(written):,} tokens", began)
    extended = load(options.model, long)
    steps = options.extension_steps
    tune(extended, pick_rows(written, target, 4, options.seed), steps, options.rate)
    log(f"extended: {steps} steps of 4 rows of {target}", began)
    save("extended", extended)
    derivative = load(options.model, spec)
    steps = options.derivative_steps
    tune(derivative, pick_rows(learned, trained, 16, options.seed), steps, options.rate)
    log(f"derivative: {steps} steps of 16 rows of {trained}", began)
    save("derivative", derivative)
    save("derivative, theta only", load(folders["derivative"], long))
    errors = {}
    for rank in options.ranks:
        adapter, name = out / f"adapter-{rank}", f"graft, rank {rank}"
        made = regraft.extract_lora(
            folders["base"], folders["extended"], adapter, rank=rank, overwrite=True
        )
        folders[name] = out / f"graft-{rank}"
        regraft.apply_lora(adapter, folders["derivative"], folders[name], overwrite=True)
        errors[name] = made.totals.error
    whole, name = out / "adapter-exact", f"graft, rank {options.ranks[-1]}, exact layout"
    regraft.extract_lora(
        folders["base"], folders["extended"], whole, rank=options.ranks[-1], layout="exact",
        overwrite=True,
    )  # fmt: skip
    folders[name] = out / "graft-exact"
    regraft.apply_lora(whole, folders["derivative"], folders[name], overwrite=True)

    edges = [0, trained // 2, trained, trained * 3 // 2, trained * 2, trained * 3, target]
    nll = {name: by_position(load(folder), exam, edges) for name, folder in folders.items()}
    nll["derivative, sliding window"] = windowed(load(folders["derivative"]), exam, edges, trained)
    log("measured", began)
    page(options, source, spec, long, nll, edges, errors, len(exam), time.perf_counter() - began)


def read_text(path: Path | None) -> tuple[str, str]:
    """The text and its name for the table."""
    if path is None:
        library = Path(sysconfig.get_paths()["stdlib"])
        sources = sorted(library.glob("*.py"))
        text = "\n\n".join(source.read_text(encoding="utf-8") for source in sources)
        return text, "the sources of Python's standard library"
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    return data.decode("utf-8"), path.name


def tokens(tokenizer: Any, text: str) -> Tensor:
    """One long row of ids, without special tokens; encoded in pieces to spare memory."""
    pieces = text.split("\n\n")
    ids = tokenizer([piece + "\n\n" for piece in pieces], add_special_tokens=False)["input_ids"]
    return torch.tensor([token for piece in ids for token in piece])


def load(source: str | Path, spec: ContextSpec | None = None) -> Any:
    """The model in float32, with another context if one is given."""
    config = AutoConfig.from_pretrained(source)
    if spec is not None:
        config.rope_parameters = dict(spec.rope_parameters)
        config.max_position_embeddings = spec.max_position_embeddings
    return AutoModelForCausalLM.from_pretrained(source, config=config, dtype=torch.float32).eval()


def rows_of(ids: Tensor, length: int) -> Tensor:
    """As many whole rows as there are, one after another."""
    return ids[: len(ids) // length * length].view(-1, length)


def pick_rows(ids: Tensor, length: int, count: int, seed: int) -> Callable[[], Tensor]:
    """Rows from anywhere in the text, `count` at a time."""
    rng = random.Random(seed)

    def pick() -> Tensor:
        starts = [rng.randrange(len(ids) - length) for _ in range(count)]
        return torch.stack([ids[start : start + length] for start in starts])

    return pick


@torch.no_grad()
def sample_text(model: Any, tokenizer: Any, count: int, length: int) -> Tensor:
    """Tokens that the model samples from its start token, in texts of at most `length`."""
    start = tokenizer.bos_token_id
    end = tokenizer.eos_token_id
    written: list[Tensor] = []
    while sum(map(len, written)) < count:
        rows = model.generate(
            torch.full((64, 1), start), max_length=length, do_sample=True, top_k=0,
            attention_mask=torch.ones(64, 1, dtype=torch.long), pad_token_id=end,
        )  # fmt: skip
        for row in rows:
            stop = (row[1:] == end).nonzero()
            written.append(row[: int(stop[0]) + 1] if len(stop) else row)
    return torch.cat(written)[:count]


def tune(model: Any, rows: Callable[[], Tensor], steps: int, rate: float) -> None:
    """AdamW on everything, linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for factor in decay(steps):
        optimizer.param_groups[0]["lr"] = rate * factor
        token_nll(model, rows()).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()


def decay(steps: int) -> Iterator[float]:
    for step in range(steps):
        yield min((step + 1) / 10, 1 - step / steps)


def token_nll(model: Any, ids: Tensor) -> Tensor:
    """Nats of every token but the first: [rows, length - 1]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    nll = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return nll.view(len(ids), -1)


@torch.no_grad()
def by_position(model: Any, rows: Tensor, edges: list[int]) -> list[float]:
    """Mean NLL of the tokens between each two edges."""
    nll = torch.cat([token_nll(model, batch) for batch in rows.split(4)]).mean(0)
    return [float(nll[max(low - 1, 0) : high - 1].mean()) for low, high in pairwise(edges)]


@torch.no_grad()
def windowed(model: Any, rows: Tensor, edges: list[int], window: int) -> list[float]:
    """The same for a model that sees only the last half to whole window before each token: the
    control without any long context."""
    parts = [token_nll(model, rows[:, :window])]
    for start in range(window // 2, rows.shape[1] - window + 1, window // 2):
        seen = token_nll(model, rows[:, start : start + window])
        parts.append(seen[:, window // 2 - 1 :])
    nll = torch.cat(parts, 1).mean(0)
    return [float(nll[max(low - 1, 0) : high - 1].mean()) for low, high in pairwise(edges)]


def log(text: str, began: float) -> None:
    print(f"{time.perf_counter() - began:6.0f} s  {text}", flush=True)


def page(
    options: argparse.Namespace,
    source: str,
    spec: ContextSpec,
    long: ContextSpec,
    nll: dict[str, list[float]],
    edges: list[int],
    errors: dict[str, float],
    rows: int,
    seconds: float,
) -> None:
    """The table to stdout and benchmarks/results/real_model.md, the figure beside it."""
    trained, target = spec.max_position_embeddings, long.max_position_embeddings
    name = Path(options.model).name
    lines = [
        f"# {name}: {format_tokens(trained)} to {format_tokens(target)} tokens, then grafted",
        "",
        environment("transformers", "peft") + f"; {seconds:.0f} s.",
        "",
        f"NLL in nats a token by position, in {rows} rows of {target} tokens of a part of {source} "
        f"on which nothing was trained. Extended: {options.extension_steps} steps on 4 rows of "
        f"{target} tokens the base wrote itself (theta {spec.theta:.0f} -> {long.theta:.0f}). "
        f"Derivative: {options.derivative_steps} steps on 16 rows of {trained} tokens of {source}. "
        f"AdamW, all weights, {options.rate:g}. float32 folders, bfloat16 adapters, "
        f"seed {options.seed}. 'error' is the adapter's Frobenius error against the projections' "
        "difference; the portable layout leaves embeddings and norms out, the exact one has them.",
        "",
        f"| | {' | '.join(f'{low}-{high}' for low, high in pairwise(edges))} | error |",
        f"|---|{'--:|' * len(edges)}",
        *(
            f"| {model} | {' | '.join(f'{value:.3f}' for value in values)} | "
            f"{f'{errors[model]:.2f}' if model in errors else ''} |"
            for model, values in nll.items()
        ),
        "",
        "![NLL by position](real_model.png)",
    ]
    record("real_model", "\n".join(lines), keep=not options.quick)
    folder = options.out if options.quick else Path(__file__).parent / "results"
    with drawing.figure(folder / "real_model.png", width=6.4, height=4.2) as axes:
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        for style, (model, values) in zip(drawing.styles(), nll.items(), strict=False):
            axes.plot(middles, values, label=model, **style)
        axes.axvline(trained, color="0.6", linewidth=0.8)
        axes.set(xlabel="position (middle of bucket)", ylabel="NLL, nats a token", title=name)
        drawing.legend(axes)


if __name__ == "__main__":
    main()
