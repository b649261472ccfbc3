"""A training step: ours beside plain transformers and PEFT.

    python benchmarks/train_step.py [--length 2k] [--steps 4] [--times 2]

On a CPU, a small Llama in float32, full and LoRA, layers recomputed or not, each contender in a
process of its own, in turn: the losses of all steps must agree to a millionth of themselves (ten
units in the last place of float32); the time is of the quickest step, memory the most the process
ever held. The plain loop has SDPA and whole logits, as transformers' own loss has. On a GPU, a LoRA
step of Llama-3-8B's shape with random weights at 64k, 128k and 256k tokens (`--lengths`): tokens/s,
MFU without recomputation, peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from llama8b import environment, record

from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.train import optimizers as optim
from regraft.train.batch import Row, together
from regraft.train.blocks import Body
from regraft.train.learner import Learner, prepare
from regraft.train.rotary import fix_rotary
from regraft.train.speed import Speed, peak_memory
from regraft.units import format_bytes, format_tokens, parse_tokens

SMALL = {
    "vocab_size": 16384, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2,
}  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
RANK, RATE, THETA = 16, 1e-3, 500000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", default="2k")
    parser.add_argument("--lengths", default="64k,128k,256k")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    length = parse_tokens(arguments.length)
    if arguments.contender:
        who, method, recompute = arguments.contender
        print(json.dumps(_small(who, method, recompute == "yes", length, arguments.steps)))
    elif torch.cuda.is_available():
        _large([parse_tokens(text) for text in arguments.lengths.split(",")], arguments.steps)
    else:
        _compare(length, arguments.steps, arguments.times)


def _compare(length: int, steps: int, times: int) -> None:
    rows = []
    for method in ("full", "lora"):
        for recompute in ("yes", "no"):
            found: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
            for _ in range(times):  # in turn, so that a busy moment strikes no single one
                for who, runs in found.items():
                    line = [sys.executable, __file__, "--contender", who, method, recompute]
                    line += ["--length", str(length), "--steps", str(steps)]
                    runs.append(json.loads(subprocess.check_output(line, text=True)))
            plain, ours = (found[who][0]["losses"] for who in ("plain", "ours"))
            apart = max(abs(a - b) / b for a, b in zip(plain, ours, strict=True))
            assert apart < 1e-6, (plain, ours)
            seconds = {who: min(run["seconds"] for run in runs) for who, runs in found.items()}
            memory = {who: min(run["memory"] for run in runs) for who, runs in found.items()}
            rows.append(
                f"| {method} | {recompute} | {seconds['plain']:.2f} | {seconds['ours']:.2f} "
                f"| {seconds['ours'] / seconds['plain']:.2f}x | {format_bytes(memory['plain'])} "
                f"| {format_bytes(memory['ours'])} | {apart:.0e} |"
            )
    count = torch.get_num_threads()
    threads = "one thread" if count == 1 else f"{count} threads"
    text = [
        f"# A training step of a small Llama, {format_tokens(length)} tokens, float32",
        "",
        environment("transformers", "peft"),
        "",
        f"{SMALL['num_hidden_layers']} layers of {SMALL['hidden_size']}, {SMALL['vocab_size']:,} "
        f"words, AdamW, {threads}, LoRA of rank {RANK} on all linear layers. Plain is transformers "
        f"and PEFT with SDPA and whole logits. Losses are those of {steps} steps on the same text; "
        "memory is the most of the process, with everything imported.",
        "",
        "| method | recomputed | plain, s | ours, s | ours / plain | plain, memory | ours, memory "
        "| losses apart by |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    record("train_step", "\n".join(text))


def _small(who: str, method: str, recompute: bool, length: int, steps: int) -> dict[str, Any]:
    """One contender: {"losses", "seconds" of the quickest step, "memory"}."""
    body = _body(method, {"checkpoint": recompute})
    model = _model(SMALL, length)
    torch.manual_seed(1)  # LoRA's first factors
    make = _plain if who == "plain" else _ours
    step = make(model, body, Mesh())
    losses, times = [], []
    for row in _rows(length, SMALL["vocab_size"], steps):
        began = time.perf_counter()
        losses.append(step(row))
        times.append(time.perf_counter() - began)
    memory = peak_memory(torch.device("cpu"))
    return {"losses": losses, "seconds": min(times), "memory": memory}


def _ours(model: Any, body: Body, mesh: Mesh) -> Callable[[Row], float]:
    return _step(_learner(model, body, mesh), body, mesh)


def _learner(model: Any, body: Body, mesh: Mesh) -> Learner:
    learner = prepare(model, body, mesh).to(mesh.device)
    spec = ContextSpec.from_config(model.config.to_dict())
    fix_rotary(model, spec, spec.max_position_embeddings)
    return learner


def _step(learner: Learner, body: Body, mesh: Mesh) -> Callable[[Row], float]:
    """One step of the loop in `regraft.train.loop`, without its text and its records."""
    parameters = learner.trained()
    optimizers = optim.make(parameters, body.optimizer)
    optim.set_rate(optimizers, RATE)

    def step(row: Row) -> float:
        nll = learner(mesh.cut(together([row]))) / row.valid
        nll.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(nll.detach())

    return step


def _plain(model: Any, body: Body, mesh: Mesh) -> Callable[[Row], float]:
    """What one writes without us."""
    from peft import LoraConfig, get_peft_model

    if body.method == "lora":
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        model = get_peft_model(model, config)
    if body.memory.checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(row: Row) -> float:
        ids, labels = row.ids[None], row.labels[None]
        loss = model(input_ids=ids, labels=labels, shift_labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _large(lengths: list[int], steps: int) -> None:
    mesh = Mesh.create(device="cuda")
    body = _body("lora", {"checkpoint": True, "offload": True, "tiled_mlp": 8192})
    with torch.device("cuda"):
        model = _model(LLAMA_8B, max(lengths), torch.bfloat16)
    learner = _learner(model, body, mesh)
    step, speed = _step(learner, body, mesh), Speed(learner, body, mesh)
    rows = []
    for length in lengths:
        torch.cuda.reset_peak_memory_stats()
        times = []
        for row in _rows(length, LLAMA_8B["vocab_size"], steps):
            torch.cuda.synchronize()
            began = time.perf_counter()
            step(row)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        seconds = min(times)
        mfu = speed.mfu(speed.of(length), seconds)
        rows.append(
            f"| {format_tokens(length)} | {seconds:.1f} | {length / seconds:,.0f} "
            f"| {'unknown' if mfu is None else f'{mfu:.0%}'} "
            f"| {format_bytes(peak_memory(mesh.device))} |"
        )
    text = [
        "# A LoRA step of Llama-3-8B's shape, random weights, bfloat16",
        "",
        f"{environment('transformers', 'peft')}, {torch.cuda.get_device_name()}",
        "",
        f"{mesh.describe(model, max(lengths), torch.bfloat16)}. LoRA of rank {RANK} on all linear "
        "layers; layers recomputed, their inputs on the host, MLP in tiles of 8k tokens. MFU "
        f"without recomputation, of {(speed.peak or 0) / 1e12:.4g} Tflop/s.",
        "",
        "| length | step, s | tokens/s | MFU | peak memory |",
        "|---|---|---|---|---|",
        *rows,
    ]
    record("train_step-cuda", "\n".join(text))


def _body(method: str, memory: dict[str, Any]) -> Body:
    """The part of a recipe that a step knows."""
    return Body.model_validate(
        {
            "model": "none",
            "method": method,
            "lora": {"rank": RANK, "norms": False},
            "stages": [{"length": 64, "steps": 1}],
            "data": {"sources": [{"name": "none", "text": "none"}]},
            "memory": memory,
        }
    )


def _model(sizes: dict[str, int], length: int, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes, max_position_embeddings=length, dtype=dtype,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, dtype=dtype)


def _rows(length: int, vocabulary: int, steps: int) -> Iterator[Row]:
    """Random text, one document a row."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        ids = torch.randint(vocabulary, (length + 1,), generator=generator)
        places = torch.arange(length)
        yield Row(ids[:-1], places, ids[1:], torch.zeros(length, dtype=torch.long))


if __name__ == "__main__":
    main()
