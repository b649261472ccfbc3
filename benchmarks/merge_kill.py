"""Kill a merge at random moments, resume it, and compare every byte with an undisturbed run.

    python benchmarks/merge_kill.py [--times 50] [--seed 0] [-o kill-out]

A small Llama (12 layers) is merged with DARE-TIES in a process of its own that gets SIGKILL at a
random moment from its start to its end, up to three times before it may finish. Exit code 1 where
any file of any output differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from harness import add_quick, environment, record
from safetensors.torch import save_file

from regraft.merge.job import merge_models

CONFIG = (
    '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, '
    '"intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 4, '
    '"num_key_value_heads": 2, "vocab_size": 2000, "max_position_embeddings": 512, '
    '"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}'
)
RECIPE = """\
merge_method: dare_ties
base_model: {0}/base
models:
  - {{model: {0}/one, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {0}/two, parameters: {{weight: 0.4, density: 0.7}}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("kill-out"))
    add_quick(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.times = 1
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    _make(out)
    recipe = out / "recipe.yaml"
    recipe.write_text(RECIPE.format(out))
    whole = out / "whole"
    merge_models(recipe, whole, dry_run=True)  # imports what the forks need, and starts no thread
    span = _run(recipe, whole, None)
    print(f"an undisturbed run takes {span:.2f} s", flush=True)
    rng = random.Random(arguments.seed)
    same = kills = resumed = 0
    for number in range(arguments.times):
        target = out / "killed"
        shutil.rmtree(target, ignore_errors=True)
        for _ in range(rng.randint(1, 3)):
            if _run(recipe, target, rng.uniform(0, 1.1 * span)) < 0:
                kills += 1
            if target.exists():
                break
        journal = out / ".killed.regraft-staging" / ".regraft-journal.jsonl"
        resumed += journal.is_file() and journal.read_bytes().count(b"tensor:") > 0
        if not target.exists():
            _run(recipe, target, None)
        files = {path.name: path.read_bytes() for path in whole.iterdir()}
        equal = files == {path.name: path.read_bytes() for path in target.iterdir()}
        same += equal
        if not equal:
            print(f"run {number}: the output differs", flush=True)
    record(
        "merge_kill",
        f"# kill -9 and --resume\n\n{environment()}\n\n{same} of {arguments.times} outputs are "
        f"byte-identical to an undisturbed run's ({kills} kills, {resumed} runs continued from "
        "finished tensors).",
        keep=not arguments.quick,
    )
    raise SystemExit(0 if same == arguments.times else 1)


def _run(recipe: Path, target: Path, limit: float | None) -> float:
    """Merge in a process of its own; kill it after `limit` seconds. The seconds it took, -1 if it
    was killed. The process is a fork of this one, which saves the imports."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            merge_models(recipe, target, resume=True)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    while limit is None or time.monotonic() - began < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"the merge failed with {status}")
            return time.monotonic() - began
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return -1.0 if os.WIFSIGNALED(status) else time.monotonic() - began


def _make(out: Path) -> None:
    """base, and two models that differ from it by noise."""
    config = json.loads(CONFIG)
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (2000, 256), "lm_head.weight": (2000, 256)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256),
            "self_attn.v_proj": (128, 256), "self_attn.o_proj": (256, 256),
            "mlp.gate_proj": (512, 256), "mlp.up_proj": (512, 256), "mlp.down_proj": (256, 512),
            "input_layernorm": (256,), "post_attention_layernorm": (256,),
        }.items():  # fmt: skip
            shapes[f"{prefix}.{name}.weight"] = shape
    shapes["model.norm.weight"] = (256,)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    for name in ("base", "one", "two"):
        folder = out / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(CONFIG)
        state = {
            key: (value if name == "base" else value + 0.001 * torch.randn(
                value.shape, generator=generator)).bfloat16()
            for key, value in base.items()
        }  # fmt: skip
        save_file(state, folder / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
