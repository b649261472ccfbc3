"""The change that PEFT makes of an adapter, to check what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from regraft.checkpoint.config import meta_model
from regraft.checkpoint.hf.pretrained import load_peft_adapter
from regraft.input_files import JsonObject


def peft_deltas(config: JsonObject, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(module path, delta in float32) of every module that PEFT loads from `folder`.

    config: the base's config.json. Every weight of the base is one zero expanded to its shape, so
    that only the adapter and one delta are in memory. Raises CheckpointError where PEFT refuses the
    adapter.
    """
    from peft.tuners.lora import LoraLayer

    model = meta_model(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    loaded = load_peft_adapter(model, folder)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in loaded.named_modules()
        if isinstance(module, LoraLayer)
    }
    for name, layer in layers.items():
        with torch.no_grad():
            for part in (layer.lora_A, layer.lora_B):
                part.float()
            for part in (layer.lora_embedding_A, layer.lora_embedding_B):
                for key in list(part.keys()):
                    part[key] = torch.nn.Parameter(part[key].float(), requires_grad=False)
            delta = layer.get_delta_weight("default")
        yield name, delta
        for part in (layer.lora_A, layer.lora_B):
            part.clear()
