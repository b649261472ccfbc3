"""Sorts the tensors of adapter_model.safetensors into factors, whole tensors and copies."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from regraft.adapters.config import AdapterConfig, Pattern
from regraft.adapters.folder import CONFIG, PREFIX
from regraft.checkpoint.dtypes import FLOAT_DTYPES
from regraft.checkpoint.read.tensor_file import TensorFile
from regraft.errors import CheckpointError, InputError

_KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<emb>embedding_)?(?P<side>[AB])(?:\.\w+)??(?:\.weight)?"
)


@dataclass(frozen=True)
class LoraModule:
    """One module of an adapter: the keys of its factors and their scale.

    embedding: whether PEFT stores the factors as those of an embedding, with the change transposed.
    """

    name: str
    key_a: str
    key_b: str
    scaling: float
    embedding: bool

    @property
    def weight(self) -> str:
        """The checkpoint tensor that changes."""
        return f"{self.name}.weight"


@dataclass
class SortedKeys:
    """modules: checkpoint tensor -> its factors; replaced: checkpoint tensor -> key of a full copy
    (modules_to_save); ignored: keys of tensors that change nothing."""

    modules: dict[str, LoraModule] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def sort_keys(
    file: TensorFile, config: AdapterConfig, ranks: Pattern, alphas: Pattern, name: str
) -> SortedKeys:
    """Sort the tensors of an adapter's file. ranks, alphas: its patterns; name: for messages.

    Raises CheckpointError for factors that are incomplete, of integers, or of another rank than the
    config says; InputError for variants of LoRA that regraft does not apply.
    """
    result = SortedKeys()
    sides: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    for key in file.tensors:
        refuse_integers(file, key, name)
        plain = key.removeprefix(PREFIX)
        match = _KEY.fullmatch(plain)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = key
            if match["emb"]:
                embeddings.add(match["module"])
        elif "lora_" in plain:
            raise InputError(
                f"{name} has '{key}', a part of LoRA that regraft does not apply (DoRA or "
                "a variant); merge it with PEFT instead."
            )
        elif ".base_layer." in plain:
            result.ignored.append(key)  # PEFT's copy of the base embedding: not a change
        else:
            result.replaced[plain.replace(".modules_to_save.default", "")] = key
    for module, keys in sorted(sides.items()):
        rank = _rank(file, module, keys, ranks.get(module, config.r), name)
        alpha = alphas.get(module, config.lora_alpha)
        scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        result.modules[f"{module}.weight"] = LoraModule(
            module, keys["A"], keys["B"], scaling, module in embeddings
        )
    if not result.modules and not result.replaced:
        raise CheckpointError(f"{name} holds no LoRA factors; give another adapter.")
    return result


def _rank(file: TensorFile, module: str, keys: dict[str, str], expected: float, name: str) -> int:
    """The rank of a module's factors. Raises where A or B is missing, or their shapes are wrong."""
    if set(keys) != {"A", "B"}:
        raise CheckpointError(
            f"{name} has only lora_{next(iter(keys))} for '{module}'; the file is "
            "incomplete, make the adapter again."
        )
    shapes = [file.shape(keys[side]) for side in "AB"]
    if any(len(shape) != 2 for shape in shapes):
        raise InputError(
            f"'{module}' of {name} has factors of shape {shapes[0]} and {shapes[1]}, "
            "and regraft changes matrices; merge it with PEFT instead."
        )
    rank, columns = shapes[0][0], shapes[1][1]
    if rank != columns or rank != expected or rank < 1:
        raise CheckpointError(
            f"'{module}' of {name} has factors of rank {rank} and {columns}, and "
            f"{CONFIG} says {expected}; the config belongs to another adapter."
        )
    return int(rank)


def refuse_integers(file: TensorFile, key: str, name: str) -> None:
    """Raise CheckpointError where a tensor of the adapter `name` is not of floating point."""
    dtype = file.tensors[key].dtype
    if dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{name} stores '{key}' as {dtype}, which is no floating-point type; make the "
            "adapter again."
        )
