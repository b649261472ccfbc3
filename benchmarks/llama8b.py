"""Checkpoints of Llama-3-8B's shapes with few layers and random weights; measuring a process.

The extended model is the base plus, in every projection, a delta of 2% of the weights' norm whose
singular values fall slowly (i^-0.7 over 256 directions) on a full-rank tail, rounded to bfloat16.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 4096,  # small, so that the layers are what is measured
}
EXTENDED = {"rope_theta": 283461213.0, "max_position_embeddings": 262144}
PROJECTIONS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}


def make(folder: Path, layers: int, kind: str) -> Path:
    """The folder of a 'base', 'extended' or 'derivative' model, made once and kept."""
    out = folder / f"{kind}-{layers}"
    if (out / "model.safetensors.index.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "num_hidden_layers": layers, **(EXTENDED if kind == "extended" else {})}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    weight_map = {}
    names = {f"model.layers.{i}": _layer for i in range(layers)} | {"": _outside}
    for i, (prefix, build) in enumerate(names.items()):
        state = {f"{prefix}.{k}" if prefix else k: v for k, v in build(i, kind).items()}
        file = f"model-{i + 1:05d}-of-{len(names):05d}.safetensors"
        save_file(state, out / file, {"format": "pt"})
        weight_map |= dict.fromkeys(state, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def _layer(index: int, kind: str) -> dict[str, torch.Tensor]:
    state = {}
    for j, (name, (m, n)) in enumerate(PROJECTIONS.items()):
        g = torch.Generator().manual_seed(1000 * index + j)
        w = (torch.randn(m, n, generator=g) * 0.02).bfloat16()
        if kind == "extended":
            s = torch.arange(1, 257, dtype=torch.float32) ** -0.7
            delta = (torch.randn(m, 256, generator=g) * s) @ torch.randn(256, n, generator=g)
            delta /= delta.norm()
            delta.add_(torch.randn(m, n, generator=g), alpha=0.2 / (m * n) ** 0.5)
            w = w.float().add_(delta, alpha=0.02 * float(w.float().norm())).bfloat16()
        if kind == "derivative":
            noise = torch.randn(m, n, generator=g.manual_seed(1000 * index + j + 500))
            w = w.float().add_(noise, alpha=0.0003).bfloat16()
        state[f"{name}.weight"] = w
    for norm in ("input_layernorm", "post_attention_layernorm"):
        state[f"{norm}.weight"] = torch.ones(4096, dtype=torch.bfloat16)
    return state


def _outside(_: int, kind: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    shape = (CONFIG["vocab_size"], 4096)
    return {
        "model.embed_tokens.weight": (torch.randn(shape, generator=g) * 0.02).bfloat16(),
        "lm_head.weight": (torch.randn(shape, generator=g) * 0.02).bfloat16(),
        "model.norm.weight": torch.ones(4096, dtype=torch.bfloat16),
    }


@dataclass
class Child:
    """Wall and CPU seconds and peak resident bytes of one command."""

    wall: float
    cpu: float
    peak: int


def run(command: list[str], **env: str) -> Child:
    """Run a command in a process of its own and measure it. Raises with its output if it fails."""
    wrapper = (
        "import resource,subprocess,sys,json,time;t=time.time();"
        "r=subprocess.run(sys.argv[1:],capture_output=True,text=True);"
        "u=resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps([r.returncode,time.time()-t,u.ru_utime+u.ru_stime,u.ru_maxrss*1024,"
        "(r.stdout+r.stderr)[-3000:]]))"
    )
    text = subprocess.run(
        [sys.executable, "-c", wrapper, *command],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code, wall, cpu, peak, output = json.loads(text)
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with {code}:\n{output}")
    return Child(wall, cpu, peak)


def warm(*folders: Path) -> None:
    """Read the files once, so that all contenders find them in the page cache."""
    for folder in folders:
        for path in folder.iterdir():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def script(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def environment(*packages: str) -> str:
    """One line on date, software and machine for the tables."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", *packages))
    model = platform.processor() or platform.machine()
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{date.today()}, {versions}, {os.cpu_count()} cores of {model}, {memory:.0f} GB"


def record(name: str, text: str) -> None:
    """Print a result and keep it under benchmarks/results/."""
    print(text)
    path = Path(__file__).parent / "results" / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
