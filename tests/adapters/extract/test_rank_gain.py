"""What rank buys is what an extraction at that rank has; auto is never larger for nothing."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file

from regraft.adapters.extract.evidence import summary
from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.extract.rank_gain import suggested_rank
from regraft.records import RankGain

SLOW = "model.layers.0.mlp.down_proj.weight"


def falling(shape: torch.Size, power: float, generator: torch.Generator) -> torch.Tensor:
    """A matrix of singular values 1, 2^-power, 3^-power, ..."""
    m, n = shape
    left, right = (
        torch.linalg.qr(torch.randn(size, min(m, n), generator=generator))[0] for size in (m, n)
    )
    return (left * torch.arange(1, min(m, n) + 1).pow(-power)) @ right.T


@pytest.fixture(scope="module")
def signals() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(base, change of 0.3%, near bfloat16's rounding); all matrices but one fall fast."""
    base = models.weights(models.LLAMA)
    generator = torch.Generator().manual_seed(3)
    change = {}
    for name, w in base.items():
        if "proj" in name:
            power, size = (0.3, 0.006) if name == SLOW else (1.0, 0.003)
            d = falling(w.shape, power, generator)
            change[name] = d * (size * w.norm() / d.norm())
    return base, change


@pytest.fixture(scope="module")
def pair(signals, tmp_path_factory) -> tuple[Path, Path]:
    base, change = signals
    folder = tmp_path_factory.mktemp("pair")
    extended = {name: w + change.get(name, 0.0) for name, w in base.items()}
    return (
        models.save(folder / "base", models.LLAMA, base, dtype=torch.bfloat16),
        models.save(folder / "long", {**models.LLAMA, **models.LONG}, extended,
                    dtype=torch.bfloat16),
    )  # fmt: skip


def test_auto_pads_no_module_to_a_rank_that_gains_nothing(pair, tmp_path):
    auto = extract_lora(*pair, tmp_path / "auto", rank="auto", verify=False)
    compact = extract_lora(*pair, tmp_path / "own", rank="auto", layout="compact", verify=False)
    rank = auto.totals.rank_stored
    assert compact.totals.rank_max > 2 * rank  # that all would be padded to
    assert auto.totals.error <= 1.01 * compact.totals.error + 1e-4  # rounding of the factors
    fixed = extract_lora(*pair, tmp_path / "fixed", rank=rank, verify=False)
    assert auto.totals.bytes == fixed.totals.bytes
    assert auto.totals.error == pytest.approx(fixed.totals.error, rel=1e-3)  # never dominated
    stored = load_file(tmp_path / "auto" / "adapter_model.safetensors")
    assert sum(tensor.nbytes for tensor in stored.values()) == auto.totals.bytes


def test_an_energy_share_is_reached_at_one_rank_for_all(pair, tmp_path):
    record = extract_lora(*pair, tmp_path / "a", energy=0.8, verify=False)
    own = extract_lora(*pair, tmp_path / "b", energy=0.8, layout="compact", verify=False)
    assert record.totals.signal_captured >= min(0.8, own.totals.signal_captured - 1e-6)
    assert record.totals.rank_stored < own.totals.rank_max


def test_what_rank_buys_is_what_an_extraction_at_that_rank_has(pair, tmp_path):
    whole = extract_lora(*pair, tmp_path / "a", rank=16, verify=False).totals
    assert [gain.rank for gain in whole.by_rank] == [1, 2, 4, 8, 16]
    assert whole.by_rank[-1].error == pytest.approx(whole.error, rel=1e-9)
    for gain in whole.by_rank[:-1]:
        own = extract_lora(
            *pair, tmp_path / "b", rank=gain.rank, verify=False, overwrite=True
        ).totals
        assert gain.bytes == own.bytes
        assert gain.error == pytest.approx(own.error, rel=2e-3)  # 1.001 x optimum, and rounding


def test_noise_along_the_captured_directions_is_no_signal(signals, tmp_path):
    """A change near the rounding of bfloat16: the energy of the factors exceeds all of the signal
    long before they have it."""
    base, change = signals
    names = [name for name in change if name != SLOW]
    small = {name: change[name] for name in names}
    extended = {name: w + small.get(name, 0.0) for name, w in base.items()}
    folders = (
        models.save(tmp_path / "base", models.LLAMA, base, dtype=torch.bfloat16),
        models.save(tmp_path / "long", {**models.LLAMA, **models.LONG}, extended,
                    dtype=torch.bfloat16),
    )  # fmt: skip
    record = extract_lora(*folders, tmp_path / "a", rank=32, modules=",".join(
        name.removesuffix(".weight").replace(".", "\\.") for name in names
    ), verify=False)  # fmt: skip
    totals = record.totals
    signal = sum(float(d.square().sum()) for d in small.values())
    everything = totals.delta_norm**2
    assert totals.energy * everything > 1.02 * signal  # which would be called all of the signal
    # a change below a step of bfloat16 makes the two roundings alike, so noise is overestimated
    assert totals.signal * everything == pytest.approx(signal, rel=0.2)
    assert 0.9 < totals.signal_captured < 0.999
    assert totals.suggested_rank < 32
    lines = dict(summary(record))
    assert f"{totals.signal:.1%} of the change's energy" in lines["above rounding"]
    assert f"the adapter has {totals.signal_captured:.1%} of that" in lines["above rounding"]
    assert f"of that, error {totals.by_rank[-2].error:.4f}" in lines["at rank 16"]
    assert lines["suggested rank"].startswith(f"{totals.suggested_rank}: nearly the same at")


def test_rank_one_has_its_lines_too(pair, tmp_path):
    record = extract_lora(*pair, tmp_path / "a", rank=1, verify=False)
    assert [gain.rank for gain in record.totals.by_rank] == [1]
    assert dict(summary(record))["suggested rank"].startswith(
        "2: more directions are above rounding"
    )


def gain(rank: int, captured: float | None) -> RankGain:
    return RankGain(rank=rank, bytes=100 * rank, error=0.5, signal_captured=captured)


@pytest.mark.parametrize(
    ("captured", "more", "cap", "rank"),
    [
        ([0.5, 0.7, 0.8, 0.9], True, None, 16),  # the last step gained: twice as much
        ([0.5, 0.7, 0.8, 0.9], True, 12, 12),
        ([0.5, 0.7, 0.8, 0.9], False, None, 8),  # nothing above rounding is left
        ([0.5, 0.89, 0.9, 0.905], True, None, 2),
        ([0.5, 0.6, 0.7, 0.715], True, None, 4),
        ([None] * 4, True, None, None),
    ],
)
def test_the_suggested_rank(captured, more, cap, rank):
    steps = [gain(2**i, share) for i, share in enumerate(captured)]
    assert suggested_rank(steps, cap, more_above=more) == rank
