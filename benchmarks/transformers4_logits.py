"""Do transformers 5 and 4.57 compute the same long-context logits from checkpoints of regraft?

    python benchmarks/transformers4_logits.py [--old-python PATH] [--quick] [--markdown FILE]

For every RoPE family a small base, a derivative and a copy of the base with another context are
made; regraft extracts the difference and applies it, merges, and runs the whole job as `regraft
graft`. Both versions load every result in float32 and compute logits of one text at lengths within
the old context, within the new one and beyond it. The control row is what `save_pretrained` of
transformers 5 makes of a result. Without --old-python a venv with transformers 4.57 is made in a
temporary folder; it borrows this interpreter's torch. Exit code 1 where a result of regraft
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import models
import torch
from config_roundtrip import make_old_python
from harness import environment, run
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.graft.job import graft_model
from regraft.merge.job import merge_models

SHARPER = 20.0  # queries and keys times this: attention that depends on the positions
OLD, NEW = 64, 256  # tokens of the two contexts
LENGTHS = (48, 256, 400)
TOLERANCE = 1e-4  # of the largest logit: what two orders of float32 sums may differ by, with slack
LLAMA = {**models.LLAMA, "rope_theta": 10000.0, "max_position_embeddings": OLD}
HALF_HEAD = models.LLAMA["hidden_size"] // models.LLAMA["num_attention_heads"] // 2


def scaled(kind: str, **settings: Any) -> dict[str, Any]:
    return {"max_position_embeddings": NEW, "rope_scaling": {"rope_type": kind, **settings}}


CONTEXTS: dict[str, dict[str, Any]] = {
    "theta": {"max_position_embeddings": NEW, "rope_theta": 80000.0},
    "llama3": scaled(
        "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=OLD,
    ),
    "yarn": scaled("yarn", factor=4.0, original_max_position_embeddings=OLD),
    "linear": scaled("linear", factor=4.0),
    "dynamic": scaled("dynamic", factor=2.0),
    "longrope": {
        **scaled(
            "longrope", factor=4.0,
            short_factor=[1.0 + 0.01 * i for i in range(HALF_HEAD)],
            long_factor=[1.0 + 0.5 * i for i in range(HALF_HEAD)],
        ),
        "original_max_position_embeddings": OLD,
    },
}  # fmt: skip

# Runs in either interpreter. Arguments: a JSON with models and lengths; the file to write.
READER = """
import json, sys
job = json.load(open(sys.argv[1]))
sys.path += job["packages"]
import torch, transformers
from safetensors.torch import save_file

transformers.logging.set_verbosity_error()
logits = {}
for name, folder in job["models"].items():
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for length in job["lengths"]:
        ids = (1 + 7919 * torch.arange(length)) % model.config.vocab_size
        with torch.no_grad():
            logits[f"{name} {length}"] = model(input_ids=ids[None], use_cache=False).logits[0]
save_file(logits, sys.argv[2], {"version": transformers.__version__})
"""


@dataclass(frozen=True)
class Result:
    """A checkpoint that regraft wrote. command: which wrote it."""

    family: str
    command: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.family} by {self.command}"


def make_results(folder: Path, families: list[str]) -> Iterator[Result]:
    """Write the models of every family, and what regraft's commands make of them."""
    base = {
        name: weight * SHARPER if "q_proj" in name or "k_proj" in name else weight
        for name, weight in models.weights(LLAMA).items()
    }
    for family in families:
        at = folder / family
        models.save(at / "base", LLAMA, base)
        extended = models.changed(base, rank=4, size=0.1, seed=1)
        models.save(at / "extended", {**LLAMA, **CONTEXTS[family]}, extended)
        models.save(at / "derivative", LLAMA, models.changed(base, rank=None, size=0.1, seed=2))
        extract_lora(at / "base", at / "extended", at / "adapter", rank=4)
        apply_lora(at / "adapter", at / "derivative", at / "applied")
        yield Result(family, "apply", at / "applied")
        (at / "merge.yaml").write_text(
            "merge_method: linear\nparameters: {weight: 0.5}\n"
            f"models: [{{model: {at}/extended}}, {{model: {at}/derivative}}]\n"
            f"context: {{from: {at}/extended}}\n"
        )
        merge_models(at / "merge.yaml", at / "merged")
        yield Result(family, "merge", at / "merged")
        (at / "graft.yaml").write_text(
            f"base: {at}/base\nextended: {at}/extended\ntargets: {at}/derivative\nranks: [4]\n"
        )
        graft_model(at / "graft.yaml", at / "job", device="cpu")
        yield Result(family, "graft", at / "job/models/derivative")


def save_as_transformers_5(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint by `save_pretrained`."""
    LlamaForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(folder)
    return folder


def read_logits(python: Path, job: Path, out: Path) -> dict[str, torch.Tensor]:
    run([str(python), "-c", READER, str(job), str(out)], OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    return load_file(out)


def differences(
    name: str, new: dict[str, torch.Tensor], old: dict[str, torch.Tensor]
) -> tuple[float, list[float]]:
    """(largest logit, largest difference at each length as a share of it)."""
    largest = max(float(new[f"{name} {length}"].abs().max()) for length in LENGTHS)
    return largest, [
        float((new[f"{name} {length}"] - old[f"{name} {length}"]).abs().max()) / largest
        for length in LENGTHS
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old-python", type=Path, help="interpreter with transformers 4.57")
    parser.add_argument("--quick", action="store_true", help="one family")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        families = ["theta"] if arguments.quick else list(CONTEXTS)
        results = list(make_results(root, families))
        folders = {result.name: str(result.folder) for result in results}
        folders["control"] = str(save_as_transformers_5(results[0].folder, root / "control"))
        job = root / "job.json"
        packages = [str(Path(torch.__file__).parents[1])]
        job.write_text(json.dumps({"models": folders, "lengths": LENGTHS, "packages": packages}))
        old_python = arguments.old_python or make_old_python(root / "venv")
        new = read_logits(Path(sys.executable), job, root / "new.safetensors")
        old = read_logits(old_python, job, root / "old.safetensors")
        with safe_open(root / "old.safetensors", "pt") as file:
            old_version = file.metadata()["version"]

    heads = " | ".join(f"difference at {length}" for length in LENGTHS)
    lines = [
        f"| context | written by | largest logit | {heads} | |",
        "|---|---|---|---|---|---|---|",
    ]
    failed = False
    for family, command, name in (
        *((result.family, f"regraft {result.command}", result.name) for result in results),
        ("theta", "`save_pretrained` (control)", "control"),
    ):
        largest, shares = differences(name, new, old)
        same = max(shares) <= TOLERANCE
        failed |= not same and name != "control"
        cells = " | ".join(f"{share:.1e}" for share in shares)
        verdict = "same" if same else "DIFFERENT"
        lines.append(f"| {family} | {command} | {largest:.2f} | {cells} | {verdict} |")
    table = "\n".join(lines)
    print(table)
    if arguments.markdown:
        arguments.markdown.write_text(
            "# Logits by transformers 5 and 4.57\n\n"
            f"`python benchmarks/transformers4_logits.py`: {environment('transformers')}; "
            f"against transformers {old_version}.\n\n"
            f"Llama models of {LLAMA['num_hidden_layers']} layers in float32, whose context goes "
            f"from {OLD} to {NEW} tokens.\nDifferences are the largest over all positions and "
            "tokens, as a share of the largest logit.\n\n"
            f"{table}\n"
        )
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
