"""`regraft theta`: the RoPE base for a longer context, from lengths as written or from a model.

Of a model only config.json is read: its theta, its context length and the size of its heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.rope import ContextSpec, theta_report
from regraft.rope.spelling import text_model
from regraft.units import parse_tokens

DEFAULT_THETA = 500000.0  # of Llama 3
DEFAULT_HEAD_DIM = 128


@dataclass(frozen=True)
class TrainedRope:
    """What a law starts from. length: trained context in tokens. warning: why a law may not fit."""

    length: int
    theta: float
    head_dim: int
    warning: str | None = None


def theta_for(
    trained: str | int,
    target: str | int,
    *,
    base: str | float | None = None,
    law: str = "scaling",
    head_dim: int | None = None,
) -> dict[str, Any]:
    """`rope.theta_report` with the chosen law's value as "theta".

    trained: a length such as '8k', or a model (folder or org/name[@revision]). target: the length
    to reach. base: a theta, or the model to read it from; default: the model given as `trained`,
    else 500000. head_dim: default: the model's, else 128.
    Raises InputError for lengths, laws and models that cannot be used.
    """
    rope = trained_rope(trained, base, head_dim)
    report = theta_report(rope.length, parse_tokens(target), rope.theta, rope.head_dim)
    if law not in report["laws"]:
        raise InputError(f"--law '{law}' is not one of {', '.join(report['laws'])}.")
    if rope.warning is not None:
        report["warnings"].append(rope.warning)
    return {**report, "law": law, "theta": report["laws"][law]["theta"]}


def trained_rope(
    trained: str | int, base: str | float | None = None, head_dim: int | None = None
) -> TrainedRope:
    """Theta, length and head size from the arguments of `theta_for`; what is given as a number
    stands before what a model says."""
    model = str(trained) if _names_model(trained) else None
    theta: float | None = None
    if base is not None:
        theta = _as_number(base)
        if theta is None:
            model = model or str(base)
            theta = _read(str(base)).theta
    found = _read(model) if model is not None else None
    length = found.length if found and _names_model(trained) else parse_tokens(trained)
    if theta is None:
        theta = found.theta if found else DEFAULT_THETA
    size = head_dim or (found.head_dim if found else DEFAULT_HEAD_DIM)
    return TrainedRope(length, theta, size, found.warning if found else None)


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
    from regraft.checkpoint.read.files import read_json  # imports torch, which numbers do not need
    from regraft.checkpoint.read.find import find_files

    config = read_json(find_files(name), "config.json")
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
