"""The two spellings of RoPE in a config.json, converted to one.

They are transformers 5's `rope_parameters`, and `rope_scaling` with `rope_theta` beside it. Every
library fills gaps and resolves contradictions in its own way. Here gaps are filled as transformers
5.23 fills them, and contradictions are errors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from regraft.errors import CheckpointError, short_repr
from regraft.records import RopeParameters
from regraft.units import format_tokens

# Families whose frequencies depend on the length before extension.
NEEDS_ORIGINAL = ("llama3", "yarn", "longrope")
REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
}
# Values that every library takes where a config states none.
_FAMILY_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
_FLOATS = (
    "rope_theta", "factor", "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor",
)  # fmt: skip
_POSITIVE = (
    "factor", "partial_rotary_factor", "beta_fast", "beta_slow",
    "low_freq_factor", "high_freq_factor",
)  # fmt: skip
# Model types with a RoPE per layer type, and the theta of each layer type where the config states
# none (transformers 5.23 `default_theta`).
LAYERED = {
    "gemma3": {"full_attention": 1e6, "sliding_attention": 1e4},
    "gemma3_text": {"full_attention": 1e6, "sliding_attention": 1e4},
    "olmo3": {"full_attention": 5e5, "sliding_attention": 5e5},
}
# Settings the legacy spelling keeps beside `rope_scaling`, not in it.
SHARED = ("rope_theta", "partial_rotary_factor")
SLIDING_THETA = "rope_local_base_freq"  # legacy key of the sliding layers' theta
# Theta of a config that states none, by model type ("" where that is missing, too). Other types
# have other defaults or no RoPE: for them a missing theta is an error.
DEFAULT_THETA = {
    **dict.fromkeys(("", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"), 1e4),
    **dict.fromkeys(("olmo", "olmo2", "granite", "starcoder2", "internlm3"), 1e4),
    "mixtral": 1e6,
}
# Gemma 3's published configs leave out whatever equals the class default.
DEFAULT_LENGTH = {"gemma3": 131072, "gemma3_text": 131072}


def is_layered(parameters: Mapping[str, Any]) -> bool:
    """Whether the parameters are nested by layer type."""
    return any(isinstance(value, Mapping) for value in parameters.values())


def text_model(config: Any) -> tuple[str, Any]:
    """(model type, config) of the language model, which multimodal configs have in text_config."""
    inner = config.get("text_config")
    inner = inner if isinstance(inner, Mapping) else config
    return str(inner.get("model_type") or config.get("model_type") or ""), inner


def rotates_by_layer(model_type: str, config: Mapping[str, Any]) -> bool:
    """Whether the model has a RoPE per layer type."""
    return (
        model_type in LAYERED
        or config.get(SLIDING_THETA) is not None
        or any(is_layered(config.get(key) or {}) for key in ("rope_parameters", "rope_scaling"))
    )


def legacy_block(config: Mapping[str, Any]) -> RopeParameters:
    """`rope_scaling` and the keys beside it as one block; may be empty."""
    beside = {key: config[key] for key in SHARED if config.get(key) is not None}
    return {**beside, **(config.get("rope_scaling") or {})}


def legacy_by_layer_type(model_type: str, config: Mapping[str, Any]) -> RopeParameters:
    """`legacy_block` by layer type."""
    block = legacy_block(config)
    if is_layered(block):
        return by_layer_type(block)
    partial = {key: block[key] for key in ("partial_rotary_factor",) if key in block}
    sliding = config.get(SLIDING_THETA) or (model_type == "olmo3" and block.get("rope_theta"))
    return {
        "full_attention": block,
        "sliding_attention": {**partial, **({"rope_theta": sliding} if sliding else {})},
    }


def by_layer_type(parameters: Mapping[str, Any]) -> RopeParameters:
    """Parameters by layer type; one shared block is that of the full-attention layers, as in
    transformers 5."""
    if not is_layered(parameters):
        return {"full_attention": parameters, "sliding_attention": {}} if parameters else {}
    return {kind: value for kind, value in parameters.items() if is_entry(value)}


def is_entry(value: Any) -> bool:
    """Whether a value of nested parameters is a layer type's: a block, or None for no RoPE."""
    return value is None or isinstance(value, Mapping)


def agree(
    modern: Mapping[str, Any],
    legacy: Mapping[str, Any],
    default_theta: float | None,
    length: int,
    original: int | None,
) -> RopeParameters:
    """One set of parameters from both spellings.

    Raises CheckpointError where they state different values.
    """
    modern, legacy = _stated(modern), _stated(legacy)
    shared = {key: value for key, value in legacy.items() if key in SHARED}
    for key, value in shared.items():
        if modern.get(key, value) != value:
            raise _contradiction(key, modern[key], value)
    new = canonical({"rope_theta": default_theta, **shared, **modern}, length, original)
    if "rope_type" not in legacy:
        return new
    old = canonical({"rope_theta": default_theta, **legacy}, length, original)
    if "rope_type" not in modern:
        # transformers drops rope_parameters when rope_scaling is there, its theta included.
        new = {**old, **{key: new[key] for key in shared.keys() | modern.keys()}}
    for key in ("rope_type", *sorted(old.keys() | new.keys())):
        if old.get(key) != new.get(key):
            raise _contradiction(key, new.get(key), old.get(key))
    return old


def _contradiction(key: str, modern: Any, legacy: Any) -> CheckpointError:
    return CheckpointError(
        f"config.json contradicts itself: {key} is {modern} in rope_parameters but {legacy} in the "
        "older spelling (rope_theta, rope_scaling); keep the value the weights were trained with."
    )


def _stated(block: Mapping[str, Any]) -> RopeParameters:
    """The block without nulls and with current key names; a scaling block gets its rope_type."""
    result = {key: value for key, value in block.items() if value is not None and key != "type"}
    kind = block.get("type")
    if kind is not None and result.setdefault("rope_type", kind) != kind:
        raise CheckpointError(
            f"config.json contradicts itself: one RoPE block has type {kind} and rope_type "
            f"{result['rope_type']}; keep the one the weights were trained with."
        )
    if not isinstance(result.get("rope_type", ""), str):
        raise CheckpointError(
            f"rope_type must be the name of a RoPE family, not {short_repr(result['rope_type'])}; "
            "write the one the weights were trained with, such as default or yarn."
        )
    if "long_factor" in result and result.get("rope_type") in ("su", "yarn"):
        result["rope_type"] = "longrope"  # its names in the first Phi-3 configs
    if "rope_type" not in result and result.keys() - set(SHARED):
        result["rope_type"] = "default"
    return result


def canonical(block: Mapping[str, Any], length: int, original: int | None) -> RopeParameters:
    """One entry of rope_parameters in standard form, with the values that transformers 5.23 infers.

    length: max_position_embeddings. original: original_max_position_embeddings at the top of the
    config; families that need it take it before `length`, and it must not differ from the block's.
    Raises CheckpointError for missing, contradicting or impossible values.
    """
    result = _stated(block)
    kind = result.pop("rope_type", "default")
    theta = result.pop("rope_theta", None)
    if theta is None:
        raise CheckpointError(
            "config.json states no rope_theta and this model type has no default known here; "
            "add the RoPE base the weights were trained with."
        )
    result = {"rope_type": str(kind), "rope_theta": theta, **result}
    for key in _FLOATS:
        if key in result:
            result[key] = _number(result[key], key)
    if not result["rope_theta"] > 1:
        raise CheckpointError(f"rope_theta must be above 1, not {result['rope_theta']:g}.")
    for key in _POSITIVE:
        if not result.get(key, 1.0) > 0:
            raise CheckpointError(f"{key} of RoPE must be above 0, not {result[key]:g}.")
    if result.get("partial_rotary_factor", 1.0) > 1:
        raise CheckpointError(
            f"partial_rotary_factor is a part of a head, 1 at most, not "
            f"{result['partial_rotary_factor']:g}."
        )
    key = "original_max_position_embeddings"
    inside = whole(result[key], key) if key in result else None
    if kind in NEEDS_ORIGINAL:
        if inside is not None and original is not None and inside != original:
            raise CheckpointError(
                f"config.json contradicts itself: original_max_position_embeddings is {inside} in "
                f"its RoPE parameters but {original} at top level; keep the right one."
            )
        result[key] = inside or whole(original or length, key)
    if kind == "yarn" and "factor" not in result:
        result["factor"] = length / result[key]
    for key, default in _FAMILY_DEFAULTS.items():
        if result.get(key) == default:
            del result[key]
    missing = [key for key in REQUIRED.get(kind, ()) if key not in result]
    if missing:
        raise CheckpointError(
            f"RoPE family {kind} lacks {' and '.join(missing)}; complete its parameters."
        )
    if kind == "longrope":
        _settle_longrope(result, length)
    return result


def _settle_longrope(rope: RopeParameters, length: int) -> None:
    """Replace `factor` by the attention factor, its only use.

    transformers 4.57 takes length / original instead of `factor`, 5.23 takes `factor`; both take
    the attention factor.
    """
    for key in ("short_factor", "long_factor"):
        if not isinstance(rope[key], list):
            raise CheckpointError(f"{key} must be a list of numbers, not {short_repr(rope[key])}.")
        rope[key] = [_number(value, key) for value in rope[key]]
    factor = rope.pop("factor", None)
    original = rope["original_max_position_embeddings"]
    if original == 1:
        raise CheckpointError("RoPE family longrope needs an original length above 1.")
    if factor is not None and factor != length / original:
        rope.setdefault("attention_factor", longrope_scale(factor, original))


def scaling_block(rope: Mapping[str, Any], model_type: str) -> RopeParameters | None:
    """The legacy `rope_scaling` of one entry of rope_parameters, None for plain RoPE."""
    block = {key: copy.deepcopy(value) for key, value in rope.items() if key not in SHARED}
    if block == {"rope_type": "default"}:
        return None
    if rope["rope_type"] == "longrope" and model_type.startswith("phi"):
        # transformers 4.57 takes exactly {type, short_factor, long_factor} here, nothing else.
        del block["original_max_position_embeddings"]
        block = {"type": block.pop("rope_type"), **block}
    return block


def longrope_scale(factor: float, original: int) -> float:
    """LongRoPE's attention factor sqrt(1 + ln s / ln L0)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def put(config: Any, key: str, value: Any) -> None:
    """Set a key of the config, or remove it where the value is None."""
    if value is None:
        config.pop(key, None)
    else:
        config[key] = value


def whole(value: Any, name: str) -> int:
    """The value as a number of tokens, at least 1. Raises CheckpointError naming the key `name`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (value >= 1 and value % 1 == 0)
    ):
        raise CheckpointError(f"{name} must be a whole number of tokens, not {value!r}.")
    return int(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{name} must be a finite number, not {value!r}.")
    return float(value)


def phrase(rope: Mapping[str, Any]) -> str:
    """'theta 500000' or 'llama3 x8 (theta 500000, from 8k)'."""
    theta = f"theta {rope['rope_theta']:.15g}"
    if rope["rope_type"] == "default":
        return theta
    factor = f" x{rope['factor']:g}" if "factor" in rope else ""
    original = rope.get("original_max_position_embeddings")
    since = f", from {format_tokens(original)}" if original else ""
    return f"{rope['rope_type']}{factor} ({theta}{since})"
