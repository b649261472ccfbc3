"""`ContextSpec`: the rotary settings and context length of a checkpoint, read from a config.json
in either spelling and written back in both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft.errors import CheckpointError, InputError
from regraft.input_files import JsonObject
from regraft.records import ContextRecord, RopeParameters
from regraft.rope.spelling import (
    DEFAULT_LENGTH,
    DEFAULT_THETA,
    LAYERED,
    SLIDING_THETA,
    agree,
    by_layer_type,
    canonical,
    is_entry,
    is_layered,
    legacy_block,
    legacy_by_layer_type,
    phrase,
    put,
    rotates_by_layer,
    scaling_block,
    text_model,
    whole,
)
from regraft.units import format_tokens


@dataclass(frozen=True)
class ContextSpec:
    """A checkpoint's RoPE parameters and context length.

    rope_parameters: transformers 5's form, {"rope_type": ..., "rope_theta": ..., ...}, or nested
        by layer type, {"full_attention": {...}, "sliding_attention": {...} or None}. They are
        standardised on construction: `type` becomes `rope_type`, numbers become floats, values
        that transformers would infer (theta, original length, YaRN's factor) are stated.
    max_position_embeddings: context length in tokens.
    original_max_position_embeddings: length before extension, None where the config has none.

    Two specs are equal if their numbers are: 500000 equals 500000.0, and the order of keys does not
    matter.
    Raises CheckpointError when a family lacks a parameter it cannot work without.
    """

    rope_parameters: RopeParameters
    max_position_embeddings: int
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        length = whole(self.max_position_embeddings, "max_position_embeddings")
        original = self.original_max_position_embeddings
        if original is not None:
            original = whole(original, "original_max_position_embeddings")
        if is_layered(self.rope_parameters):
            parameters: RopeParameters = {
                kind: None if value is None else canonical(value, length, None)
                for kind, value in self.rope_parameters.items()
                if is_entry(value)
            }
        else:
            parameters = canonical(self.rope_parameters, length, original)
        object.__setattr__(self, "rope_parameters", parameters)
        stated = self._main().get("original_max_position_embeddings")
        object.__setattr__(self, "max_position_embeddings", length)
        object.__setattr__(self, "original_max_position_embeddings", stated or original)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ContextSpec:
        """The context in a config.json, in either spelling or both; text_config is read, too.

        As in transformers 5.23, `rope_scaling` has precedence over `rope_parameters`, and theta is
        that of the block, else that at the top, else the model type's default. A null
        `rope_scaling` states nothing. Raises CheckpointError naming both values where the spellings
        differ: older and newer libraries would load different models.
        """
        model_type, config = text_model(config)
        length = config.get("max_position_embeddings") or DEFAULT_LENGTH.get(model_type)
        if length is None:
            has_rope = any(key.startswith("rope_") for key in config)
            if not has_rope and model_type not in DEFAULT_THETA:
                raise CheckpointError(
                    f"config.json (model_type '{model_type}') has no RoPE; regraft moves context "
                    "between models with rotary positions, such as Llama's."
                )
            raise CheckpointError(
                "config.json states no max_position_embeddings; add the model's context length."
            )
        modern, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
        if not isinstance(modern, Mapping) or not isinstance(scaling, Mapping):
            raise CheckpointError("config.json: rope_parameters and rope_scaling must be objects.")
        length = whole(length, "max_position_embeddings")
        original = config.get("original_max_position_embeddings")
        if original is not None:
            original = whole(original, "original_max_position_embeddings")
        if not rotates_by_layer(model_type, config):
            theta = DEFAULT_THETA.get(model_type)
            merged = agree(modern, legacy_block(config), theta, length, original)
            return cls(merged, length, original)
        thetas = LAYERED.get(model_type, {})
        modern, legacy = by_layer_type(modern), legacy_by_layer_type(model_type, config)
        parameters: RopeParameters = {}
        for kind in modern or legacy:
            if modern.get(kind, {}) is None and kind not in thetas:
                parameters[kind] = None  # layers without RoPE
                continue
            new, old = modern.get(kind) or {}, legacy.get(kind) or {}
            if "partial_rotary_factor" in new:  # rope_scaling is laid over a layer type's block
                old = {"partial_rotary_factor": new["partial_rotary_factor"], **old}
            default = thetas.get(kind) or config.get("rope_theta")
            parameters[kind] = agree(new, old, default, length, None)
        return cls(parameters, length, original)

    def write_into(self, config: Mapping[str, Any]) -> JsonObject:
        """A copy of `config` with this context in both spellings.

        The keys are `rope_parameters`; `rope_theta` at the top; `rope_scaling` (null for plain
        RoPE); `max_position_embeddings`; and, where a library reads them, `partial_rotary_factor`,
        `original_max_position_embeddings` (transformers 4.57 reads LongRoPE's only there) and Gemma
        3's `rope_local_base_freq`. Present keys keep their position, new ones follow. Raises
        InputError where only one of context and config has a RoPE per layer type.
        """
        result = copy.deepcopy(dict(config))
        model_type, target = text_model(result)
        if rotates_by_layer(model_type, target) != self.is_layered:
            own, expected = "one RoPE for all layers", "a RoPE per layer type"
            if self.is_layered:
                own, expected = expected, own
            raise InputError(
                f"A context with {own} cannot be written into a {model_type or 'model'} config, "
                f"which has {expected}; state the context for this model instead."
            )
        main = self._main()
        target["rope_parameters"] = copy.deepcopy(self.rope_parameters)
        target["rope_theta"] = main["rope_theta"]
        target["rope_scaling"] = scaling_block(main, model_type)
        target["max_position_embeddings"] = self.max_position_embeddings
        if self.is_layered:
            target.pop("partial_rotary_factor", None)  # would leak into every layer type
            sliding = self.rope_parameters.get("sliding_attention")
            if sliding is not None and (model_type.startswith("gemma3") or SLIDING_THETA in target):
                target[SLIDING_THETA] = sliding["rope_theta"]
        else:
            put(target, "partial_rotary_factor", main.get("partial_rotary_factor"))
        key = "original_max_position_embeddings"
        if main["rope_type"] not in ("llama3", "yarn") or key in target:
            put(target, key, self.original_max_position_embeddings)
        return result

    @property
    def is_layered(self) -> bool:
        """Whether there is a RoPE per layer type (Gemma 3)."""
        return is_layered(self.rope_parameters)

    @property
    def main_layer_type(self) -> str | None:
        """The layer type whose RoPE decides the context length, None where all layers rotate alike.

        Raises CheckpointError where no layer type rotates.
        """
        if not self.is_layered:
            return None
        rotating = [kind for kind, value in self.rope_parameters.items() if value is not None]
        if not rotating:
            raise CheckpointError("rope_parameters names no layer type that rotates.")
        return "full_attention" if "full_attention" in rotating else rotating[0]

    @property
    def theta(self) -> float:
        """RoPE base; where there is one per layer type, that of the full-attention layers."""
        return float(self._main()["rope_theta"])

    @property
    def rope_type(self) -> str:
        """RoPE family; where there is one per layer type, that of the full-attention layers."""
        return str(self._main()["rope_type"])

    def of_layer(self, layer_type: str | None) -> RopeParameters:
        """The parameters of a layer type; of the full-attention layers for None.

        Raises InputError for a layer type that does not rotate.
        """
        if layer_type is None or not self.is_layered:
            return self._main()
        entry = self.rope_parameters.get(layer_type)
        if entry is None:
            raise InputError(
                f"This context has no rotating layers of type '{layer_type}'; it knows "
                f"{', '.join(self.rope_parameters)}."
            )
        return dict(entry)

    def to_json(self) -> JsonObject:
        """Plain dicts, lists and numbers, for regraft.json."""
        return {
            "rope_parameters": copy.deepcopy(self.rope_parameters),
            "max_position_embeddings": self.max_position_embeddings,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ContextSpec:
        """The inverse of `to_json`. Raises CheckpointError when a field is missing."""
        try:
            return cls(
                data["rope_parameters"],
                data["max_position_embeddings"],
                data.get("original_max_position_embeddings"),
            )
        except KeyError as error:
            raise CheckpointError(f"The stored context lacks {error}; extract it again.") from None

    def to_record(self) -> ContextRecord:
        """The context as a part of a record."""
        return ContextRecord(**self.to_json())

    @classmethod
    def from_record(cls, record: ContextRecord) -> ContextSpec:
        """The inverse of `to_record`. Raises CheckpointError for parameters that are no RoPE."""
        return cls(
            record.rope_parameters,
            record.max_position_embeddings,
            record.original_max_position_embeddings,
        )

    def describe(self) -> str:
        """One phrase: 'theta 500000, 8k' or 'llama3 x8 (theta 500000, from 8k), 128k'."""
        length = format_tokens(self.max_position_embeddings)
        if not self.is_layered:
            return f"{phrase(self.rope_parameters)}, {length}"
        parts = [
            f"{kind.removesuffix('_attention')} {'no RoPE' if value is None else phrase(value)}"
            for kind, value in self.rope_parameters.items()
        ]
        return f"{'; '.join(parts)}, {length}"

    def _main(self) -> RopeParameters:
        """The parameters that decide the context length."""
        kind = self.main_layer_type
        return self.rope_parameters if kind is None else dict(self.rope_parameters[kind])
