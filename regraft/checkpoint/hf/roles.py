"""The role of each tensor: projection, embedding, head, norm or bias, and in which layer.

Roles come from the model class, built by transformers on the meta device (no memory, no weights:
20 ms for an 8B model), not from a table of names, so every architecture of transformers is known
here, with its tied keys. The import of transformers takes 2 to 3 s on top of torch's, so the roles
for a config are stored in the user's cache folder (see `regraft.cache`).

A checkpoint may spell names differently than the class: without `model.`, with `language_model.`,
or with one matrix per expert where transformers 5 holds a stack. Names are matched as transformers'
loader matches them, then without such prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal, TypedDict, cast

from regraft import cache
from regraft.checkpoint.config import meta_model, name_checkpoint
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError

Kind = Literal["projection", "embedding", "head", "norm", "bias", "other"]


@dataclass(frozen=True)
class Role:
    """The part that one tensor plays in its model.

    kind: projection (the weight of an nn.Linear inside a layer), embedding, head, norm, bias (of
        whatever module), or other (expert stacks, routers, buffers, tensors that the model does not
        have).
    module: path of the owning module in the transformers model, such as
        'model.layers.3.self_attn.q_proj', however the checkpoint spells it.
    leaf: last part of `module`, 'q_proj' or 'input_layernorm'; for a bare parameter its own name.
    layer: index of the layer, or None outside the layers.
    block: the part of the layer, 'self_attn' or 'mlp'; '' for modules directly in the layer.
    """

    kind: Kind
    module: str
    leaf: str
    layer: int | None
    block: str


def tensor_roles(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Role]:
    """Tensor name -> role, for a checkpoint with this config.json.

    A name that the model does not have is `other`; see `unknown_tensors`. Raises CheckpointError
    when the installed transformers cannot build the model from `config`.
    """
    model = _model_tensors(config)
    return {name: _role(model, name) for name in names}


def checkpoint_roles(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, Role]:
    """Tensor name -> role of all tensors of a checkpoint, or of `names`.

    Raises CheckpointError naming the checkpoint.
    """
    with name_checkpoint(checkpoint.name):
        return tensor_roles(checkpoint.config, checkpoint.tensors if names is None else names)


def unknown_tensors(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The names, in order, that the model does not have.

    Rotary frequencies that old checkpoints stored are not among them. Raises as `tensor_roles`.
    """
    model = _model_tensors(config)
    return [
        name
        for name in names
        if model.find(name) is None and not name.endswith("rotary_emb.inv_freq")
    ]


def has_tied_head(config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding. Raises as `tensor_roles`."""
    model = _model_tensors(config)
    return any(model.kinds.get(name) == "head" for name in model.tied)


@dataclass(frozen=True)
class _ModelTensors:
    """The tensors of the model class: the kind of each, the tied ones, and how to find a name.

    tied: name -> the tensor that it is, such as 'lm_head.weight' -> 'model.embed_tokens.weight'.
    bare: name without wrapping prefixes -> the model's name.
    """

    kinds: dict[str, Kind]
    tied: dict[str, str]
    bare: dict[str, str]
    prefixes: frozenset[str]
    config_json: str

    def find(self, name: str) -> str | None:
        """The model's name for a checkpoint's tensor, or None."""
        if name in self.kinds:
            return name
        from transformers.core_model_loading import rename_source_key

        for candidate in (name, rename_source_key(name, *_conversions(self.config_json))[0]):
            if candidate in self.kinds:
                return candidate
            if match := self.bare.get(_without_prefixes(candidate, self.prefixes)):
                return match
        return None


def _role(model: _ModelTensors, name: str) -> Role:
    model_name = model.find(name)
    kind: Kind = "other" if model_name is None else model.kinds[model_name]
    path = model_name or name
    module, _, parameter = path.rpartition(".")
    leaf = module.rpartition(".")[2] if parameter in ("weight", "bias") else parameter
    index = _layer_part(module)
    if index is None:
        return Role(kind, module, leaf, None, "")
    parts = module.split(".") if parameter in ("weight", "bias") else path.split(".")
    block = parts[index + 1] if len(parts) > index + 2 else ""
    return Role(kind, module, leaf, int(parts[index]), block)


def _layer_part(module: str) -> int | None:
    """Index of the part of a dotted path that is the layer's number; None outside the layers."""
    return next((i for i, part in enumerate(module.split(".")) if part.isdigit()), None)


def _model_tensors(config: Mapping[str, Any]) -> _ModelTensors:
    try:
        text = json.dumps(config, sort_keys=True)
    except TypeError as error:
        raise CheckpointError(f"config.json holds something that is not JSON: {error}.") from None
    return _cached_model_tensors(text)


@lru_cache(maxsize=8)
def _cached_model_tensors(config_json: str) -> _ModelTensors:
    entry = cache.Entry("roles", version("transformers"), config_json)
    cached = entry.read()
    if isinstance(cached, dict) and cached.keys() == {"kinds", "tied", "prefixes"}:
        read = cast("_ModelClass", cached)
    else:
        read = _read_model_class(config_json)
        entry.write(read)
    prefixes = frozenset(read["prefixes"])
    bare: dict[str, str] = {}
    for name in read["kinds"]:
        bare.setdefault(_without_prefixes(name, prefixes), name)
    return _ModelTensors(read["kinds"], read["tied"], bare, prefixes, config_json)


@lru_cache(maxsize=8)
def _conversions(config_json: str) -> tuple[list[Any], list[Any]]:
    """The renamings and the other conversions of transformers' loader for this model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    transforms = get_model_conversion_mapping(meta_model(json.loads(config_json)))
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    return renamings, [item for item in transforms if not isinstance(item, WeightRenaming)]


class _ModelClass(TypedDict):
    """What is cached of a model class: kinds of all tensors, the tied ones, wrapping prefixes."""

    kinds: dict[str, Kind]
    tied: dict[str, str]
    prefixes: list[str]


def _read_model_class(config_json: str) -> _ModelClass:
    from torch import nn

    model = meta_model(json.loads(config_json))
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    kinds: dict[str, Kind] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own: Kind = "other"
        if module is head:
            own = "head"
        elif module is embedding or isinstance(module, nn.Embedding):
            own = "embedding"
        elif "Norm" in type(module).__name__:
            own = "norm"
        elif isinstance(module, nn.Linear) and _layer_part(path) is not None:
            own = "projection"
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            kind: Kind = "bias" if name == "bias" else own if name == "weight" else "other"
            kinds[f"{path}.{name}" if path else name] = kind
        for name, _ in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in module._non_persistent_buffers_set:
                kinds[f"{path}.{name}" if path else name] = "other"
    return {
        "kinds": kinds,
        "tied": dict(model.all_tied_weights_keys),
        "prefixes": sorted({"model", "language_model", model.base_model_prefix} - {""}),
    }


def _without_prefixes(name: str, prefixes: frozenset[str]) -> str:
    first, dot, rest = name.partition(".")
    while dot and first in prefixes:
        name = rest
        first, dot, rest = name.partition(".")
    return name
