"""Which arithmetic a command works with."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

from regraft.device import (
    check_device,
    deterministic_algorithms,
    full_precision,
    pick_device,
    use_expandable_segments,
)
from regraft.errors import InputError


@pytest.fixture
def reduced():
    """The process has TF32 and reduced sums on, as NVIDIA's containers have."""
    matmul = torch.backends.cuda.matmul
    before = settings()
    torch.set_float32_matmul_precision("high")
    matmul.allow_bf16_reduced_precision_reduction = True
    matmul.allow_fp16_reduced_precision_reduction = True
    yield settings()
    torch.set_float32_matmul_precision(before[0])
    matmul.allow_bf16_reduced_precision_reduction = before[1]
    matmul.allow_fp16_reduced_precision_reduction = before[2]


def settings():
    matmul = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )


def test_full_precision_inside_and_what_was_before_after(reduced):
    with full_precision():
        inside = settings()
    assert inside[0] == "highest"
    assert not inside[1]
    assert not inside[2]
    assert settings() == reduced
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert settings() == reduced


@pytest.mark.parametrize(
    ("module", "function", "first_step", "arguments"),
    [
        ("regraft.adapters.extract.extract", "extract_lora", "parse_rule", ("a", "b", "c")),
        ("regraft.adapters.apply.apply", "apply_lora", "pick_device", ("a", "b", "c")),
        ("regraft.adapters.inspect.inspect", "inspect_model", "pick_device", ("a", "b")),
        ("regraft.merge.job", "merge_models", "pick_device", ("a", "b")),
    ],
)
def test_commands_compute_in_full_precision(
    module, function, first_step, arguments, reduced, monkeypatch
):
    seen = []

    def watched(*_, **__):
        seen.append(settings())
        raise KeyboardInterrupt

    home = importlib.import_module(module)
    monkeypatch.setattr(home, first_step, watched)
    with pytest.raises(KeyboardInterrupt):
        getattr(home, function)(*map(Path, arguments))
    assert seen[0][0] == "highest"
    assert settings() == reduced


def test_deterministic_algorithms_inside_and_what_was_before_after(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic_algorithms():
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.raises(ZeroDivisionError), deterministic_algorithms():
            raise ZeroDivisionError
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_segments_are_expandable_unless_the_user_configured_the_allocator(monkeypatch):
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what is set below
        monkeypatch.delenv(name)
    use_expandable_segments()
    assert os.environ[names[0]] == "expandable_segments:True"
    for name in names:
        monkeypatch.delenv(names[0], raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:128")
        use_expandable_segments()
        assert os.environ[name] == "max_split_size_mb:128"
        assert "expandable" not in os.environ.get(names[0], "")


def fake_gpus(monkeypatch, count, capability=(9, 0), built=("sm_80", "sm_90")):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))


def test_a_gpu_that_cannot_be_used_is_refused_with_the_drivers_reason(monkeypatch):
    def too_old():
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040).\nPlease update."
        )

    fake_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(InputError, match=r"sees no such GPU here \(The NVIDIA driver on your"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        pick_device("cuda")
    fake_gpus(monkeypatch, 2)
    with pytest.raises(InputError, match="there are 2"):
        pick_device("cuda:2")


def test_a_device_for_other_machines_is_refused_where_torch_has_it_on_none(monkeypatch):
    fake_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    for name in ("auto", "cpu", "cuda", "cuda:3"):
        check_device(name)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    check_device("auto")
    with pytest.raises(InputError, match=r"--device cuda: torch .* is built without CUDA"):
        check_device("cuda")
    for name in ("gpu", "meta"):
        with pytest.raises(InputError, match=f"--device '{name}' is not auto, cpu"):
            check_device(name)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((9, 0), ("sm_90a",), True),
        ((8, 6), ("sm_80",), True),  # a later GPU of the same generation
        ((8, 0), ("sm_86",), False),
        ((12, 0), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_80", "compute_90"), True),  # compiled by the driver
        ((7, 0), ("sm_75", "compute_90"), False),
        ((12, 0), ("sm_120",), True),
        ((9, 0), (), True),  # torch does not say
        ((9, 0), ("gfx90a", "gfx942"), True),  # AMD's, of which capabilities say nothing
    ],
)
def test_a_gpu_without_kernels_in_this_torch_is_refused(capability, built, runs, monkeypatch):
    fake_gpus(monkeypatch, 1, capability, built)
    if runs:
        assert pick_device("auto") == torch.device("cuda")
        return
    for name in ("auto", "cuda:0"):
        with pytest.raises(InputError, match="has no kernels"):
            pick_device(name)
