"""Laws that choose theta for a longer context.

The critical-base scaling law (Liu et al., "Scaling Laws of RoPE-based Extrapolation", arXiv
2310.05209), NTK-aware scaling (bloc97, 2023) and the lower bound of Men et al. ("Base of RoPE
Bounds Context Length", arXiv 2405.14591).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from regraft.errors import InputError
from regraft.units import format_tokens


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
    _check_head(head_dim)
    return theta * (target / trained) ** (head_dim / (head_dim - 2))


def men_bound(target: int) -> float:
    """Least theta that distinguishes positions `target` tokens apart: 0.0424 L ** 1.628.

    Men et al., arXiv 2405.14591 (fit of their table). Below it perplexity may be good while
    retrieval fails.
    """
    return 0.0424 * target**1.628


def longest_wavelength(theta: float, head_dim: int) -> float:
    """Tokens per rotation of the slowest pair of dimensions: 2 pi * theta ** ((d - 2) / d)."""
    _check_head(head_dim)
    return 2 * math.pi * theta ** ((head_dim - 2) / head_dim)


@dataclass(frozen=True, kw_only=True)
class LawTheta:
    """The theta of one law, and tokens per rotation of the slowest pair of dimensions, both rounded
    to whole numbers. below_bound: whether theta lies below Men's bound."""

    theta: int
    longest_wavelength: int
    below_bound: bool


@dataclass(frozen=True, kw_only=True)
class ThetaReport:
    """Every law for one extension.

    trained, target: lengths in tokens; base: theta of the model. laws: 'scaling', 'ntk' and
    'bound'. base_wavelength: the longest wavelength with theta `base`. warnings: sentences.
    """

    trained: int
    target: int
    base: float
    head_dim: int
    laws: dict[str, LawTheta]
    base_wavelength: int
    warnings: list[str]


def theta_report(trained: int, target: int, base: float, head_dim: int = 128) -> ThetaReport:
    """Every law for extending `trained` to `target` tokens from theta `base`.

    Raises InputError for lengths, thetas and head dimensions that the laws do not hold for.
    """
    bound = men_bound(target)
    thetas = {
        "scaling": scaling_law(base, trained, target),
        "ntk": ntk(base, trained, target, head_dim),
        "bound": bound,
    }
    laws = {
        name: LawTheta(
            theta=round(theta),
            longest_wavelength=round(longest_wavelength(theta, head_dim)),
            below_bound=theta < bound,
        )
        for name, theta in thetas.items()
    }
    warnings = [
        f"The {name} law's theta {law.theta} lies below Men's bound {round(bound)} for "
        f"{format_tokens(target)}: perplexity may look fine while retrieval fails."
        for name, law in laws.items()
        if law.below_bound
    ]
    return ThetaReport(
        trained=trained,
        target=target,
        base=base,
        head_dim=head_dim,
        laws=laws,
        base_wavelength=round(longest_wavelength(base, head_dim)),
        warnings=warnings,
    )


def describe_laws(report: ThetaReport) -> list[str]:
    """A line for each law of a report, then its warnings."""
    laws = [
        f"{name:8} theta {law.theta:>14,}   longest wavelength {law.longest_wavelength:,} tokens"
        for name, law in report.laws.items()
    ]
    return [*laws, *report.warnings]


def _check_head(head_dim: int) -> None:
    if head_dim < 4 or head_dim % 2:
        raise InputError(f"A head dimension of {head_dim} has no RoPE; give an even number from 4.")


def _check_law(theta: float, trained: int, target: int) -> None:
    if not 1 < theta <= 1e15:
        raise InputError(f"theta must be a number above 1 and at most 1e15, not {theta}.")
    if max(trained, target) > 1 << 50:
        raise InputError(
            f"No context is {max(trained, target)} tokens long; give a length below 1P."
        )
    if min(trained, target) < 8:
        raise InputError(
            f"Context lengths {trained} and {target} are too short for a law; give 8 or more."
        )
