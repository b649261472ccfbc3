"""Which tensor is what: projection, embedding, head, norm or bias, and in which layer.

The answer comes from the model class itself, built by transformers on the meta device (no memory,
no weights: 20 ms for an 8B model), not from a table of names. So every architecture transformers
knows is known here, with its own tied keys. The cost is the import: 2 to 3 s on top of torch, so
the answer for a config is kept in the user's cache folder (see `regraft.cache`).

Checkpoints may spell names otherwise than the class does: without `model.`, with
`language_model.`, or with one matrix per expert where transformers 5 holds a stack. Names are
brought home the way transformers' own loader does it, then by ignoring such prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal

from regraft import cache
from regraft.checkpoint.config import meta_model
from regraft.errors import CheckpointError

Kind = Literal["projection", "embedding", "head", "norm", "bias", "other"]


@dataclass(frozen=True)
class Role:
    """What one tensor is to its model.

    kind: projection (the weight of an nn.Linear inside a layer), embedding, head, norm, bias (of
        whatever module), or other (expert stacks, routers, buffers, what the model does not know).
    module: path of the owning module in the transformers model, such as
        'model.layers.3.self_attn.q_proj', however the checkpoint spells it.
    leaf: last part of `module`, 'q_proj' or 'input_layernorm'; for a bare parameter its own name.
    layer: index of the layer, or None outside the layers.
    block: the part of the layer, 'self_attn' or 'mlp'; '' for what hangs on the layer itself.
    """

    kind: Kind
    module: str
    leaf: str
    layer: int | None
    block: str


def roles(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Role]:
    """Tensor name -> role, for a checkpoint with this config.json.

    A name the model does not know is `other`; see `unknown`. Raises CheckpointError when the
    installed transformers cannot build the model from `config`.
    """
    layout = _layout_of(config)
    return {name: _role(layout, name) for name in names}


def unknown(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The names, in order, that the model has no place for.

    Rotary frequencies that old checkpoints stored are not among them. Raises as `roles` does.
    """
    layout = _layout_of(config)
    return [
        name
        for name in names
        if layout.home(name) is None and not name.endswith("rotary_emb.inv_freq")
    ]


def tied(config: Mapping[str, Any]) -> dict[str, str]:
    """Tensors that are another tensor, such as {'lm_head.weight': 'model.embed_tokens.weight'}.

    In the model's own spelling, empty when nothing is tied; a checkpoint may store either or both.
    Raises as `roles` does.
    """
    return dict(_layout_of(config).tied)


def tied_head(config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding. Raises as `roles` does."""
    layout = _layout_of(config)
    return any(layout.kinds.get(name) == "head" for name in layout.tied)


@dataclass(frozen=True)
class _Layout:
    """What the meta model says: kind of every tensor, tied names, and ways to find a name."""

    kinds: dict[str, Kind]
    tied: dict[str, str]
    bare: dict[str, str]  # name without wrapping prefixes -> the model's name
    prefixes: frozenset[str]
    config_json: str

    def home(self, name: str) -> str | None:
        """The model's name for a checkpoint's tensor, or None."""
        if name in self.kinds:
            return name
        from transformers.core_model_loading import rename_source_key

        for candidate in (name, rename_source_key(name, *_conversions(self.config_json))[0]):
            if candidate in self.kinds:
                return candidate
            if found := self.bare.get(_without_prefixes(candidate, self.prefixes)):
                return found
        return None


def _role(layout: _Layout, name: str) -> Role:
    home = layout.home(name)
    kind: Kind = "other" if home is None else layout.kinds[home]
    path = home or name
    module, _, parameter = path.rpartition(".")
    leaf = module.rpartition(".")[2] if parameter in ("weight", "bias") else parameter
    index = _layer_part(module)
    if index is None:
        return Role(kind, module, leaf, None, "")
    parts = module.split(".") if parameter in ("weight", "bias") else path.split(".")
    block = parts[index + 1] if len(parts) > index + 2 else ""
    return Role(kind, module, leaf, int(parts[index]), block)


def _layer_part(module: str) -> int | None:
    """Where in a dotted path the layer's number stands, if it is in a layer at all."""
    return next((i for i, part in enumerate(module.split(".")) if part.isdigit()), None)


def _layout_of(config: Mapping[str, Any]) -> _Layout:
    try:
        text = json.dumps(config, sort_keys=True)
    except TypeError as error:
        raise CheckpointError(f"config.json holds something that is not JSON: {error}.") from None
    return _build(text)


@lru_cache(maxsize=8)
def _build(config_json: str) -> _Layout:
    kept = cache.Entry("roles", version("transformers"), config_json)
    known = kept.read()
    if not isinstance(known, dict) or known.keys() != {"kinds", "tied", "prefixes"}:
        known = _ask_transformers(config_json)
        kept.write(known)
    prefixes = frozenset(known["prefixes"])
    bare: dict[str, str] = {}
    for name in known["kinds"]:
        bare.setdefault(_without_prefixes(name, prefixes), name)
    return _Layout(known["kinds"], known["tied"], bare, prefixes, config_json)


@lru_cache(maxsize=8)
def _conversions(config_json: str) -> tuple[list[Any], list[Any]]:
    """What transformers' loader renames and what it converts for this model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    transforms = get_model_conversion_mapping(meta_model(json.loads(config_json)))
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    return renamings, [item for item in transforms if not isinstance(item, WeightRenaming)]


def _ask_transformers(config_json: str) -> dict[str, Any]:
    """The kinds of all tensors, the tied ones and the wrapping prefixes, as the model class has
    them."""
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
