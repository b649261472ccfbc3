"""`regraft theta`: the RoPE base for a longer context, from numbers or from a model.

Only the config.json of a model is read: its theta, context length and head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from regraft.errors import InputError
from regraft.rope import ContextSpec, ThetaReport, theta_report
from regraft.rope.spelling import text_model
from regraft.units import parse_tokens

DEFAULT_THETA = 500000.0  # of Llama 3
DEFAULT_HEAD_DIM = 128


@dataclass(frozen=True)
class TrainedRope:
    """The RoPE that a law starts from. length: trained context in tokens. warning: why a law may
    not hold for it."""

    length: int
    theta: float
    head_dim: int
    warning: str | None = None


@dataclass(frozen=True, kw_only=True)
class ThetaChoice(ThetaReport):
    """All laws, and the theta of the chosen one."""

    law: str
    theta: int


def theta_for(
    trained: str | int,
    target: str | int,
    *,
    base: str | float | None = None,
    law: str = "scaling",
    head_dim: int | None = None,
) -> ThetaChoice:
    """The theta of every law for a longer context, and that of `law`.

    trained: a length such as '8k', or a model (folder or org/name[@revision]). target: the length
    to reach. base: a theta, or the model to read it from; default: the model given as `trained`,
    else 500000. head_dim: default: the model's, else 128.
    Raises InputError for lengths, laws and models that cannot be used.
    """
    rope = trained_rope(trained, base, head_dim)
    report = theta_report(rope.length, parse_tokens(target), rope.theta, rope.head_dim)
    if law not in report.laws:
        raise InputError(f"--law '{law}' is not one of {', '.join(report.laws)}.")
    warnings = [*report.warnings, *([rope.warning] if rope.warning else [])]
    return ThetaChoice(
        **vars(replace(report, warnings=warnings)), law=law, theta=report.laws[law].theta
    )


def trained_rope(
    trained: str | int, base: str | float | None = None, head_dim: int | None = None
) -> TrainedRope:
    """Theta, length and head size from the arguments of `theta_for`; a number that is given has
    precedence over the model's."""
    model = str(trained) if _names_model(trained) else None
    theta: float | None = None
    if base is not None:
        theta = _as_number(base)
        if theta is None:
            model = model or str(base)
            theta = _read(str(base)).theta
    read = _read(model) if model is not None else None
    length = read.length if read and _names_model(trained) else parse_tokens(trained)
    if theta is None:
        theta = read.theta if read else DEFAULT_THETA
    size = head_dim or (read.head_dim if read else DEFAULT_HEAD_DIM)
    return TrainedRope(length, theta, size, read.warning if read else None)


def _names_model(value: str | int) -> bool:
    """Whether an argument is a model: a folder with a config.json, or an id with a slash."""
    if isinstance(value, int):
        return False
    return "/" in value or (Path(value).expanduser() / "config.json").is_file()


def _as_number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _read(name: str) -> TrainedRope:
    from regraft.checkpoint.config import name_checkpoint  # imports torch, as numbers need not
    from regraft.checkpoint.read.files import read_json
    from regraft.checkpoint.read.find import find_files

    config = read_json(find_files(name), "config.json")
    with name_checkpoint(name):
        spec = ContextSpec.from_config(config)
    _, text = text_model(config)
    try:
        head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    except (KeyError, TypeError, ZeroDivisionError):
        raise InputError(
            f"The config.json of {name} states no usable hidden_size and num_attention_heads; "
            "give the lengths, --base and --head-dim as numbers."
        ) from None
    warning = None
    if spec.rope_type != "default":
        warning = (
            f"{name} rotates by {spec.describe()}: the laws are for plain RoPE, so take their "
            "theta as a first guess."
        )
    return TrainedRope(spec.max_position_embeddings, spec.theta, int(head), warning)
