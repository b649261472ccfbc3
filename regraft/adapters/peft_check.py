"""Read an adapter back with PEFT itself and rebuild its deltas with PEFT's own code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.checkpoint.roles import meta_model
from regraft.errors import CheckpointError


def peft_deltas(config: dict[str, Any], folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(module path, delta float32) of every module PEFT loads from `folder` on a model of `config`.

    The model is a shell: every weight is one stored zero expanded to its shape, so that nothing but
    the adapter and one delta is in memory. Raises CheckpointError where PEFT refuses the adapter.
    """
    from peft.tuners.lora import LoraLayer

    model = meta_model(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    loaded = _load(model, folder)
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


def _load(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a property that was renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # It also warns of merging into a tied embedding; here nothing is merged.
        warnings.filterwarnings("ignore", ".*tie_word_embeddings", UserWarning)
        try:
            return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
        except Exception as error:  # whatever PEFT raises for an adapter that it cannot use
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise CheckpointError(
                f"PEFT does not load the adapter ({type(error).__name__}: {first_line}); please "
                "report it, or go on with --no-verify."
            ) from error
