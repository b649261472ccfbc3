"""Results that tests of `regraft inspect` compare its own with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from regraft.adapters.inspect.inspect import Inspection
from regraft.adapters.inspect.tables import tables
from regraft.adapters.reader import CONFIG, WEIGHTS
from regraft.records import to_json


def printed(result: Inspection, width: int = 80) -> str:
    """The printed tables, which fit `width`; checks that the result can be JSON, too."""
    json.dumps(to_json(result), allow_nan=False)
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables(result):
        console.print(table)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def direct_effective_rank(matrix: torch.Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values.square().sum() ** 2 / values.pow(4).sum())


def dense(folder: Path) -> dict[str, torch.Tensor]:
    """Every module's change in float64, by tensor name, from PEFT's files alone."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = {k: t.double() for k, t in load_file(folder / WEIGHTS).items()}
    out = {}
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name = stem.removeprefix("base_model.model.")
            rank = config["rank_pattern"].get(name.replace(".", r"\."), config["r"])
            alpha = config["alpha_pattern"].get(name.replace(".", r"\."), config["lora_alpha"])
            out[f"{name}.weight"] = tensors[f"{stem}.lora_B.weight"] @ a * alpha / rank
    return out


def foreign(folder: Path, **config: Any) -> Path:
    """A LoRA not written by regraft, on q_proj of layer 0 (rank 4) and 1 (rank 2 under a
    pattern)."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    pattern = config.get("rank_pattern")
    tensors = {}
    for layer, rank in ((0, 4), (1, 2 if pattern else 4)):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, 64, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(64, rank, generator=generator)
    if config.get("modules_to_save"):
        tensors["base_model.model.model.norm.weight"] = torch.ones(64)
    save_file(tensors, folder / WEIGHTS)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": None}
    (folder / CONFIG).write_text(json.dumps({**plain, **config}))
    return folder
