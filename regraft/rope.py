"""RoPE: what a model's numbers forget about their own context, and the arithmetic around it.

Three things live here, all pure and none of them needing torch to import:

* `ContextSpec`: the rotary settings and context length of a checkpoint, read from a config.json in
  either spelling (transformers 5 `rope_parameters`, or `rope_theta` + `rope_scaling`) and written
  back in both. transformers 5 alone saves a config that 4.57, vLLM and llama.cpp of its time read
  as theta 10000; both spellings together are read alike by everyone.
* `inverse_frequencies`, `tables`: frequencies of every family and cos/sin tables whose angles are
  formed in float64. In float32 an angle at position 4M is wrong by up to 0.125 rad.
* laws that choose theta for a longer context: the critical-base scaling law (Liu et al., "Scaling
  Laws of RoPE-based Extrapolation", arXiv 2310.05209), NTK-aware scaling (bloc97, 2023) and the
  lower bound of Men et al. ("Base of RoPE Bounds Context Length", arXiv 2405.14591).

Families: linear ("Extending Context Window of LLMs via Positional Interpolation", 2306.15595),
dynamic NTK, YaRN (2309.00071), LongRoPE (2402.13753), Llama 3.1's piecewise rule, and Gemma's
proportional rotation. Frequencies are frozen for one target length: the dynamic families, which
transformers recomputes from whatever positions it happens to see, would otherwise differ between
the shards of one sequence.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.errors import CheckpointError, InputError
from regraft.units import format_tokens, parse_tokens

if TYPE_CHECKING:
    import torch

# Families whose frequencies depend on the length before extension.
_NEEDS_ORIGINAL = ("llama3", "yarn", "longrope")
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": (),
}
# What every reader assumes when silent: said or unsaid, the same context.
_FAMILY_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
_FLOATS = (
    "rope_theta", "factor", "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor",
)  # fmt: skip
# Model types whose layers rotate differently by kind, with the theta each kind has when the
# config is silent (transformers 5.23 `default_theta`), and the legacy key of the sliding theta.
_LAYERED = {
    "gemma3": {"full_attention": 1e6, "sliding_attention": 1e4},
    "gemma3_text": {"full_attention": 1e6, "sliding_attention": 1e4},
    "olmo3": {"full_attention": 5e5, "sliding_attention": 5e5},
}
# Settings the legacy spelling keeps beside `rope_scaling`, not in it.
_SHARED = ("rope_theta", "partial_rotary_factor")
_SLIDING_THETA = "rope_local_base_freq"
# Theta of a config that states none, by model type ("" is a config that does not say). Other
# types have other defaults, or no RoPE at all: there silence is an error, not a guess.
_DEFAULT_THETA = {
    **dict.fromkeys(("", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"), 1e4),
    **dict.fromkeys(("olmo", "olmo2", "granite", "starcoder2", "internlm3"), 1e4),
    "mixtral": 1e6,
}
# Gemma 3's published configs leave out whatever equals the class default.
_DEFAULT_LENGTH = {"gemma3": 131072, "gemma3_text": 131072}


@dataclass(frozen=True)
class ContextSpec:
    """How a checkpoint places tokens: rotary parameters and context length.

    rope_parameters: transformers 5's form, {"rope_type": ..., "rope_theta": ..., ...}, or nested
        by layer type, {"full_attention": {...}, "sliding_attention": {...} or None}. Made canonical
        on construction: `type` becomes `rope_type`, numbers become floats, what transformers
        would infer (theta, original length, YaRN's factor) is stated.
    max_position_embeddings: context length in tokens.
    original_max_position_embeddings: length before extension, where the config knows it.

    Two specs are equal when their numbers are: 500000 is 500000.0, and key order is nothing.
    Raises CheckpointError when a family lacks a parameter it cannot work without.
    """

    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        length = _whole(self.max_position_embeddings, "max_position_embeddings")
        original = self.original_max_position_embeddings
        if original is not None:
            original = _whole(original, "original_max_position_embeddings")
        if _is_layered(self.rope_parameters):
            parameters: dict[str, Any] = {
                kind: None if value is None else _canonical(value, length, None)
                for kind, value in self.rope_parameters.items()
                if _is_entry(value)
            }
        else:
            parameters = _canonical(self.rope_parameters, length, original)
        object.__setattr__(self, "rope_parameters", parameters)
        stated = self._main().get("original_max_position_embeddings")
        object.__setattr__(self, "max_position_embeddings", length)
        object.__setattr__(self, "original_max_position_embeddings", stated or original)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ContextSpec:
        """Read a raw config.json (a dict), in either spelling or both; text_config is entered.

        Follows transformers 5.23: a `rope_scaling` block stands before `rope_parameters`, theta is
        looked for in the block, then at top level, then is the model type's default. Where the
        two spellings state different values, readers of different age would load different
        models: CheckpointError, naming both. A null `rope_scaling` states nothing.
        """
        model_type, config = _text_model(config)
        length = config.get("max_position_embeddings") or _DEFAULT_LENGTH.get(model_type)
        if length is None:
            raise CheckpointError(
                "config.json states no max_position_embeddings; add the model's context length."
            )
        modern, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
        if not isinstance(modern, Mapping) or not isinstance(scaling, Mapping):
            raise CheckpointError("config.json: rope_parameters and rope_scaling must be objects.")
        original = config.get("original_max_position_embeddings")
        if not _rotates_by_layer(model_type, config):
            theta = _DEFAULT_THETA.get(model_type)
            merged = _agree(modern, _legacy(config), theta, length, original)
            return cls(merged, length, original)
        thetas = _LAYERED.get(model_type, {})
        modern, legacy = _by_layer_type(modern), _legacy_by_layer_type(model_type, config)
        parameters: dict[str, Any] = {}
        for kind in modern or legacy:
            if modern.get(kind, {}) is None and kind not in thetas:
                parameters[kind] = None  # layers without RoPE
                continue
            new, old = modern.get(kind) or {}, legacy.get(kind) or {}
            if "partial_rotary_factor" in new:  # rope_scaling is laid over a layer type's block
                old = {"partial_rotary_factor": new["partial_rotary_factor"], **old}
            default = thetas.get(kind) or config.get("rope_theta")
            parameters[kind] = _agree(new, old, default, length, None)
        return cls(parameters, length, original)

    def write_into(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of `config` that says this context in both spellings.

        Written: `rope_parameters`; top-level `rope_theta`; `rope_scaling` (null for plain RoPE);
        `max_position_embeddings`; and, where a reader looks there, `partial_rotary_factor`,
        `original_max_position_embeddings` (transformers 4.57 finds LongRoPE's nowhere else) and
        Gemma 3's `rope_local_base_freq`. Keys already present keep their place, new ones follow.
        Raises InputError when one side rotates by layer type and the other does not.
        """
        result = copy.deepcopy(dict(config))
        model_type, target = _text_model(result)
        if _rotates_by_layer(model_type, target) != self.is_layered:
            have, want = "one RoPE for all layers", "a RoPE per layer type"
            if self.is_layered:
                have, want = want, have
            raise InputError(
                f"A context with {have} cannot be written into a {model_type or 'model'} config, "
                f"which has {want}; state the context for this model instead."
            )
        main = self._main()
        target["rope_parameters"] = copy.deepcopy(self.rope_parameters)
        target["rope_theta"] = main["rope_theta"]
        target["rope_scaling"] = _scaling_block(main, model_type)
        target["max_position_embeddings"] = self.max_position_embeddings
        if self.is_layered:
            target.pop("partial_rotary_factor", None)  # would leak into every layer type
            sliding = self.rope_parameters.get("sliding_attention")
            if sliding is not None and (
                model_type.startswith("gemma3") or _SLIDING_THETA in target
            ):
                target[_SLIDING_THETA] = sliding["rope_theta"]
        else:
            _put(target, "partial_rotary_factor", main.get("partial_rotary_factor"))
        key = "original_max_position_embeddings"
        if main["rope_type"] not in ("llama3", "yarn") or key in target:
            _put(target, key, self.original_max_position_embeddings)
        return result

    @property
    def is_layered(self) -> bool:
        """Whether layer types rotate differently (Gemma 3)."""
        return _is_layered(self.rope_parameters)

    @property
    def theta(self) -> float:
        """RoPE base; of the full-attention layers where layer types differ."""
        return float(self._main()["rope_theta"])

    @property
    def rope_type(self) -> str:
        """RoPE family; of the full-attention layers where layer types differ."""
        return str(self._main()["rope_type"])

    def to_json(self) -> dict[str, Any]:
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

    def describe(self) -> str:
        """One phrase: 'theta 500000, 8k' or 'llama3 x8 (theta 500000, from 8k), 128k'."""
        length = format_tokens(self.max_position_embeddings)
        if not self.is_layered:
            return f"{_phrase(self.rope_parameters)}, {length}"
        parts = [
            f"{kind.removesuffix('_attention')} {'no RoPE' if value is None else _phrase(value)}"
            for kind, value in self.rope_parameters.items()
        ]
        return f"{'; '.join(parts)}, {length}"

    def extended(
        self,
        *,
        theta: float | None = None,
        length: int | None = None,
        rope_type: str | None = None,
        factor: float | None = None,
        original: int | None = None,
    ) -> ContextSpec:
        """A copy with new values; what is not given stays.

        A new `rope_type` drops the old family's parameters and takes `original` from this spec's
        original (or present) length. Naming `rope_type` with a length but no `factor` sets factor
        to length / original. Llama 3.1's low and high frequency factors are its published 1 and
        4. Where layer types differ the full-attention layers change: the sliding ones never see
        the longer context. Raises InputError for values the family cannot use.
        """
        main = dict(self._main())
        family = main["rope_type"] if rope_type is None else rope_type
        before = original or self.original_max_position_embeddings or self.max_position_embeddings
        if family != main["rope_type"]:
            if family not in _REQUIRED:
                raise InputError(
                    f"'{family}' is no RoPE family{_suggest(family, _REQUIRED)}; "
                    f"choose from {', '.join(_REQUIRED)}."
                )
            if family == "longrope":
                raise InputError(
                    "longrope needs a factor per dimension, which cannot be given here; "
                    "take the context from a checkpoint that has them."
                )
            kept = {key: main[key] for key in _SHARED if key in main}
            main = {"rope_type": family, **kept}
            if family == "llama3":
                main |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scales = "factor" in _REQUIRED.get(family, ())
        if family == "dynamic" and length not in (None, self.max_position_embeddings):
            raise InputError(
                "dynamic RoPE takes max_position_embeddings as the length before scaling; "
                "leave the length out and give the factor."
            )
        if scales and factor is None and rope_type is not None and length is not None:
            factor = length / before
        if factor is not None:
            if not scales:
                raise InputError(
                    f"RoPE family {family} takes no factor; "
                    "leave it out or name a family, such as rope_type=yarn."
                )
            if not factor >= 1 or math.isinf(factor):
                raise InputError(f"A RoPE factor must be at least 1, not {factor:g}.")
            main["factor"] = factor
        if scales and "factor" not in main:
            raise InputError(f"RoPE family {family} needs a factor; give factor or length.")
        if theta is not None:
            main["rope_theta"] = theta
        known = original or (
            None if rope_type == "default" else self.original_max_position_embeddings
        )
        if family in _NEEDS_ORIGINAL:
            main["original_max_position_embeddings"] = known = before
        parameters = {**self.rope_parameters, self._main_kind(): main} if self.is_layered else main
        new_length = self.max_position_embeddings if length is None else length
        return ContextSpec(parameters, new_length, known)

    def _main_kind(self) -> str:
        kinds = [kind for kind, value in self.rope_parameters.items() if value is not None]
        if not kinds:
            raise CheckpointError("rope_parameters names no layer type that rotates.")
        return "full_attention" if "full_attention" in kinds else kinds[0]

    def _main(self) -> dict[str, Any]:
        """The parameters that decide the context length."""
        if not self.is_layered:
            return self.rope_parameters
        return dict(self.rope_parameters[self._main_kind()])


def parse_context(text: str, base: ContextSpec) -> ContextSpec:
    """`--context theta=283461213,length=256k` applied to `base`.

    Keys: theta, length, rope_type (or family), factor, original. Raises InputError for an unknown
    key (with the nearest known one), a repeated key or a value that is no number.
    """
    names = {
        "theta": "theta",
        "length": "length",
        "rope_type": "rope_type",
        "family": "rope_type",
        "factor": "factor",
        "original": "original",
    }
    values: dict[str, Any] = {}
    for item in text.split(","):
        key, sign, value = (part.strip() for part in item.partition("="))
        if not sign or not value:
            raise InputError(
                f"--context: '{item.strip()}' is not key=value, such as theta=8000000,length=128k."
            )
        if key not in names:
            raise InputError(
                f"--context: '{key}' is no setting{_suggest(key, names)}; "
                f"choose from {', '.join(names)}."
            )
        name = names[key]
        if name in values:
            raise InputError(f"--context: '{key}' is given twice; keep one.")
        if name in ("length", "original"):
            values[name] = parse_tokens(value)
        elif name == "rope_type":
            values[name] = value
        else:
            try:
                values[name] = float(value.replace("_", ""))
            except ValueError:
                raise InputError(f"--context: {key}={value} is not a number.") from None
    return base.extended(**values)


# Frequencies and tables


def inverse_frequencies(
    spec: ContextSpec,
    head_dim: int,
    length: int | None = None,
    layer_type: str | None = None,
) -> tuple[torch.Tensor, float]:
    """(inverse frequencies in radians per token, attention factor), frozen for one length.

    Frequencies are float64 [rotary_dim / 2], rotary_dim = head_dim x partial_rotary_factor; the
    attention factor multiplies cos and sin (so attention logits by its square).
    length: the longest context to serve, by default the spec's own. It matters to `dynamic` (grows
    theta beyond max_position_embeddings) and `longrope` (long factors beyond the original length).
    layer_type: which entry of a layered spec; full_attention by default.
    Formulas are those of transformers 5.23 `ROPE_INIT_FUNCTIONS`, evaluated in float64.
    Raises InputError for a family without a formula here or a layer type that does not rotate.
    """
    import torch

    rope = _of_layer(spec, layer_type)
    length = length or spec.max_position_embeddings
    kind = rope["rope_type"]
    theta = rope["rope_theta"]
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    factor = rope.get("factor", 1.0)
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    plain = theta**-exponents
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "dynamic":
        trained = spec.max_position_embeddings
        grown = factor * max(length, trained) / trained - (factor - 1)
        return (theta * grown ** (dim / (dim - 2))) ** -exponents, 1.0
    if kind == "yarn":
        ramp = _yarn_ramp(rope, dim)
        return plain / factor * ramp + plain * (1 - ramp), _yarn_attention(rope)
    if kind == "llama3":
        return _llama3(plain, rope), 1.0
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        chosen = rope["long_factor"] if length > original else rope["short_factor"]
        if len(chosen) != len(plain):
            raise InputError(
                f"longrope has {len(chosen)} factors for {len(plain)} frequencies; "
                "they belong to a model with another head size."
            )
        return plain / torch.tensor(chosen, dtype=torch.float64), _longrope_attention(rope, spec)
    if kind == "proportional":
        rotated = int(rope.get("partial_rotary_factor", 1.0) * head_dim // 2)
        exponents = torch.arange(0, 2 * rotated, 2, dtype=torch.float64) / head_dim
        still = torch.zeros(head_dim // 2 - rotated, dtype=torch.float64)
        return torch.cat([theta**-exponents, still]) / factor, 1.0
    raise InputError(f"RoPE family '{kind}' has no formula here; known are {', '.join(_REQUIRED)}.")


def tables(
    spec: ContextSpec,
    head_dim: int,
    positions: torch.Tensor,
    length: int | None = None,
    layer_type: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each float32 [*positions.shape, rotary_dim], on the device of `positions`.

    The last axis holds every frequency twice, first half then second, as transformers'
    `apply_rotary_pos_emb` wants it; the attention factor is already in. Angles are products in
    float64, so the tables are exact to float32 rounding (1e-7) at any position below 2**28.
    """
    import torch

    frequencies, attention = inverse_frequencies(spec, head_dim, length, layer_type)
    angles = positions.to(torch.float64)[..., None] * frequencies.to(positions.device)
    cos = (angles.cos() * attention).to(torch.float32)
    sin = (angles.sin() * attention).to(torch.float32)
    return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


# Laws: which theta for which length


def scaling_law(theta: float, trained: int, target: int) -> float:
    """Smallest theta whose critical dimension keeps its share: theta ** (ln(L'/2pi) / ln(L/2pi)).

    Liu et al., arXiv 2310.05209, theorem 2. theta: base of the model; trained, target: lengths in
    tokens. Gradient published this value for Llama-3 at 256k (283461213) and 1M (3580165449).
    """
    _check_law(theta, trained, target)
    return theta ** (math.log(target / (2 * math.pi)) / math.log(trained / (2 * math.pi)))


def ntk(theta: float, trained: int, target: int, head_dim: int) -> float:
    """NTK-aware base: theta * s ** (d / (d - 2)), s = target / trained.

    Stretches the longest wavelength exactly s times and the shortest not at all.
    """
    _check_law(theta, trained, target)
    return theta * (target / trained) ** (head_dim / (head_dim - 2))


def men_bound(target: int) -> float:
    """Least theta that can tell tokens `target` apart: 0.0424 * L ** 1.628.

    Men et al., arXiv 2405.14591 (fit of their table). Below it perplexity looks fine and
    retrieval fails.
    """
    return 0.0424 * target**1.628


def longest_wavelength(theta: float, head_dim: int) -> float:
    """Tokens per turn of the slowest pair of dimensions: 2 pi * theta ** ((d - 2) / d)."""
    return 2 * math.pi * theta ** ((head_dim - 2) / head_dim)


def theta_report(trained: int, target: int, base: float, head_dim: int = 128) -> dict[str, Any]:
    """Every law for extending `trained` to `target` tokens from theta `base`.

    Returns {"trained", "target", "base", "head_dim", "laws": {"scaling" | "ntk" | "bound":
    {"theta": int, "longest_wavelength": int, "below_bound": bool}}, "base_wavelength": int,
    "warnings": [sentence, ...]}. theta and wavelengths are rounded to whole numbers.
    """
    bound = men_bound(target)
    thetas = {
        "scaling": scaling_law(base, trained, target),
        "ntk": ntk(base, trained, target, head_dim),
        "bound": bound,
    }
    laws = {
        name: {
            "theta": round(theta),
            "longest_wavelength": round(longest_wavelength(theta, head_dim)),
            "below_bound": theta < bound,
        }
        for name, theta in thetas.items()
    }
    warnings = [
        f"The {name} law's theta {law['theta']} lies below Men's bound {round(bound)} for "
        f"{format_tokens(target)}: perplexity may look fine while retrieval fails."
        for name, law in laws.items()
        if law["below_bound"]
    ]
    return {
        "trained": trained,
        "target": target,
        "base": base,
        "head_dim": head_dim,
        "laws": laws,
        "base_wavelength": round(longest_wavelength(base, head_dim)),
        "warnings": warnings,
    }


def _check_law(theta: float, trained: int, target: int) -> None:
    if not (theta > 1 and math.isfinite(theta)):
        raise InputError(f"theta must be a number above 1, not {theta}.")
    if min(trained, target) < 8:
        raise InputError(
            f"Context lengths {trained} and {target} are too short for a law; give 8 or more."
        )


# Families, in detail


def _yarn_ramp(rope: Mapping[str, Any], dim: int) -> torch.Tensor:
    """YaRN's gamma, 0 where a dimension keeps its frequency and 1 where it is interpolated [dim/2].

    arXiv 2309.00071, eq. 18 and 23: the ends are the dimensions that turn beta_fast and beta_slow
    times within the original context.
    """
    import torch

    def dimension(turns: float) -> float:
        wavelength = rope["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(rope["rope_theta"]))

    low = dimension(rope.get("beta_fast") or 32)
    high = dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    return ((torch.arange(dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)


def _yarn_attention(rope: Mapping[str, Any]) -> float:
    """YaRN's 0.1 ln s + 1, or DeepSeek's ratio of two of them."""
    if "attention_factor" in rope:
        return float(rope["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1.0

    numerator, denominator = rope.get("mscale"), rope.get("mscale_all_dim")
    if numerator and denominator:
        return mscale(numerator) / mscale(denominator)
    return mscale(1.0)


def _llama3(plain: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1: short wavelengths stay, long ones divide by factor, a linear blend between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (keep + (1 - keep) / rope["factor"])


def _longrope_attention(rope: Mapping[str, Any], spec: ContextSpec) -> float:
    """LongRoPE's sqrt(1 + ln s / ln L0), s = length / L0, unless stated."""
    if "attention_factor" in rope:
        return float(rope["attention_factor"])
    original = rope["original_max_position_embeddings"]
    return _longrope_scale(spec.max_position_embeddings / original, original)


def _longrope_scale(factor: float, original: int) -> float:
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


# Both spellings of a config


def _is_layered(parameters: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in parameters.values())


def _text_model(config: Any) -> tuple[str, Any]:
    """(model type, config) of the language model; a multimodal config holds it in text_config."""
    inner = config.get("text_config")
    inner = inner if isinstance(inner, Mapping) else config
    return str(inner.get("model_type") or config.get("model_type") or ""), inner


def _rotates_by_layer(model_type: str, config: Mapping[str, Any]) -> bool:
    return (
        model_type in _LAYERED
        or config.get(_SLIDING_THETA) is not None
        or any(_is_layered(config.get(key) or {}) for key in ("rope_parameters", "rope_scaling"))
    )


def _legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `rope_scaling` and the keys beside it state, as one block; may be empty."""
    beside = {key: config[key] for key in _SHARED if config.get(key) is not None}
    return {**beside, **(config.get("rope_scaling") or {})}


def _legacy_by_layer_type(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    block = _legacy(config)
    if _is_layered(block):
        return _by_layer_type(block)
    partial = {key: block[key] for key in ("partial_rotary_factor",) if key in block}
    sliding = config.get(_SLIDING_THETA) or (model_type == "olmo3" and block.get("rope_theta"))
    return {
        "full_attention": block,
        "sliding_attention": {**partial, **({"rope_theta": sliding} if sliding else {})},
    }


def _by_layer_type(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """One shared block belongs to the full-attention layers, as transformers 5 has it."""
    if not _is_layered(parameters):
        return {"full_attention": parameters, "sliding_attention": {}} if parameters else {}
    return {kind: value for kind, value in parameters.items() if _is_entry(value)}


def _is_entry(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _agree(
    modern: Mapping[str, Any],
    legacy: Mapping[str, Any],
    default_theta: float | None,
    length: int,
    original: int | None,
) -> dict[str, Any]:
    """The one reading of both spellings; CheckpointError where they state different values."""
    modern, legacy = _stated(modern), _stated(legacy)
    shared = {key: value for key, value in legacy.items() if key in _SHARED}
    for key, value in shared.items():
        if modern.get(key, value) != value:
            raise _contradiction(key, modern[key], value)
    new = _canonical({"rope_theta": default_theta, **shared, **modern}, length, original)
    if "rope_type" not in legacy:
        return new
    old = _canonical({"rope_theta": default_theta, **legacy}, length, original)
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


def _stated(block: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls, under today's key names; a scaling block always says its type."""
    result = {key: value for key, value in block.items() if value is not None and key != "type"}
    kind = block.get("type")
    if kind is not None and result.setdefault("rope_type", kind) != kind:
        raise CheckpointError(
            f"config.json contradicts itself: one RoPE block has type {kind} and rope_type "
            f"{result['rope_type']}; keep the one the weights were trained with."
        )
    if "long_factor" in result and result.get("rope_type") in ("su", "yarn"):
        result["rope_type"] = "longrope"  # its names in the first Phi-3 configs
    if "rope_type" not in result and result.keys() - set(_SHARED):
        result["rope_type"] = "default"
    return result


def _canonical(block: Mapping[str, Any], length: int, original: int | None) -> dict[str, Any]:
    """One entry of rope_parameters as transformers 5.23 would standardize it, inferred parts said.

    `original` is the config's top-level value, which stands before the length for families that
    need one and must not differ from the block's own.
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
    if kind in _NEEDS_ORIGINAL:
        inside = result.get("original_max_position_embeddings")
        if inside is not None and original is not None and inside != original:
            raise CheckpointError(
                f"config.json contradicts itself: original_max_position_embeddings is {inside} in "
                f"its RoPE parameters but {original} at top level; keep the right one."
            )
        result["original_max_position_embeddings"] = _whole(
            inside or original or length, "original_max_position_embeddings"
        )
    if kind == "yarn" and "factor" not in result:
        result["factor"] = length / result["original_max_position_embeddings"]
    for key, default in _FAMILY_DEFAULTS.items():
        if result.get(key) == default:
            del result[key]
    missing = [key for key in _REQUIRED.get(kind, ()) if key not in result]
    if missing:
        raise CheckpointError(
            f"RoPE family {kind} lacks {' and '.join(missing)}; complete its parameters."
        )
    if kind == "longrope":
        _settle_longrope(result, length)
    return result


def _settle_longrope(rope: dict[str, Any], length: int) -> None:
    """Turn a stated `factor` into the attention factor, its only use.

    transformers 4.57 overrides it with length / original where 5.23 believes it; the attention
    factor both believe.
    """
    rope["short_factor"] = [_number(value, "short_factor") for value in rope["short_factor"]]
    rope["long_factor"] = [_number(value, "long_factor") for value in rope["long_factor"]]
    factor = rope.pop("factor", None)
    original = rope["original_max_position_embeddings"]
    if factor is not None and factor != length / original:
        rope.setdefault("attention_factor", _longrope_scale(factor, original))


def _scaling_block(rope: Mapping[str, Any], model_type: str) -> dict[str, Any] | None:
    """The legacy `rope_scaling` of one entry: None for plain RoPE."""
    block = {key: copy.deepcopy(value) for key, value in rope.items() if key not in _SHARED}
    if block == {"rope_type": "default"}:
        return None
    if rope["rope_type"] == "longrope" and model_type.startswith("phi"):
        # transformers 4.57 takes exactly {type, short_factor, long_factor} here, nothing else.
        del block["original_max_position_embeddings"]
        block = {"type": block.pop("rope_type"), **block}
    return block


def _of_layer(spec: ContextSpec, layer_type: str | None) -> dict[str, Any]:
    if layer_type is None or not spec.is_layered:
        return spec._main()
    entry = spec.rope_parameters.get(layer_type)
    if entry is None:
        raise InputError(
            f"This context has no rotating layers of type '{layer_type}'; it knows "
            f"{', '.join(spec.rope_parameters)}."
        )
    return dict(entry)


def _put(config: Any, key: str, value: Any) -> None:
    if value is None:
        config.pop(key, None)
    else:
        config[key] = value


def _whole(value: Any, name: str) -> int:
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


def _phrase(rope: Mapping[str, Any]) -> str:
    theta = f"theta {rope['rope_theta']:.15g}"
    if rope["rope_type"] == "default":
        return theta
    factor = f" x{rope['factor']:g}" if "factor" in rope else ""
    original = rope.get("original_max_position_embeddings")
    since = f", from {format_tokens(original)}" if original else ""
    return f"{rope['rope_type']}{factor} ({theta}{since})"


def _suggest(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
