"""An adapter as a GGUF LoRA: (alpha / r) B A of the file is the change that PEFT makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from gguf_files import read_gguf
from peft_folders import Q, adapter

from regraft.adapters.extract.extract import extract_lora
from regraft.adapters.reader import Adapter
from regraft.errors import CheckpointError, InputError
from regraft.export.job import export_gguf, summary
from regraft.export.llama import permuted

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # fmt: skip
K, DOWN = "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.down_proj"
SHAPES = {Q: (64, 64), K: (32, 64), DOWN: (64, 96)}
GGUF = {Q: "blk.0.attn_q", K: "blk.1.attn_k", DOWN: "blk.1.ffn_down"}
HEADS = {Q: 4, K: 2, DOWN: None}


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


def three_modules(folder: Path, ranks: dict[str, int], **config: Any) -> Path:
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, (rows, columns) in SHAPES.items():
        a, b = (rows, ranks[name]), (ranks[name], columns)
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_B.weight"] = torch.randn(*a, generator=generator)
        tensors[f"{key}.lora_A.weight"] = torch.randn(*b, generator=generator)
    targets = ["q_proj", "k_proj", "down_proj"]
    return adapter(folder, {"target_modules": targets, **config}, tensors)


def change_in_llama_cpp(path: Path, name: str) -> torch.Tensor:
    """What llama.cpp adds to the weight of this name."""
    metadata, tensors = read_gguf(path)
    a, b = (tensors[f"{name}.weight.lora_{side}"].double() for side in "ab")
    assert metadata["adapter.lora.alpha"]
    return metadata["adapter.lora.alpha"] / b.shape[1] * (b @ a)


@pytest.mark.parametrize(
    ("ranks", "config", "rescaled"),
    [
        ((4, 4, 4), {}, 0),
        ((4, 4, 4), {"lora_alpha": 6}, 0),
        ((4, 4, 4), {"use_rslora": True}, 0),
        ((4, 2, 8), {"rank_pattern": {"k_proj": 2, "down_proj": 8}}, 0),
        (
            (4, 2, 8),
            {"rank_pattern": {"k_proj": 2, "down_proj": 8},
             "alpha_pattern": {"k_proj": 2, "down_proj": 8}},
            1,
        ),
    ],
)  # fmt: skip
def test_every_module_changes_as_in_peft(
    ranks: tuple[int, ...], config: dict[str, Any], rescaled: int, family, tmp_path: Path
) -> None:
    folder = three_modules(tmp_path / "a", dict(zip(SHAPES, ranks, strict=True)), **config)
    record = export_gguf(folder, tmp_path / "a.gguf", base=family[0])
    lora = Adapter.open(folder)
    for name in SHAPES:
        b, a = (factor.double() for factor in lora.factors(f"{name}.weight"))
        heads = HEADS[name]
        expected = b @ a if heads is None else permuted(b @ a, heads)
        result = change_in_llama_cpp(tmp_path / "a.gguf", GGUF[name])
        # B is rounded to float32 twice
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-5)
    assert record.rescaled == rescaled


def test_an_extracted_adapter_is_stored_exactly(family, tmp_path: Path) -> None:
    base, extended, _ = family
    extract_lora(base, extended, tmp_path / "a", rank=4, verify=False)
    record = export_gguf(tmp_path / "a", tmp_path / "a.gguf")  # the record names the base
    assert (record.lost_to_rounding, record.rescaled) == (0.0, 0)
    _, tensors = read_gguf(tmp_path / "a.gguf")
    factors = Adapter.open(tmp_path / "a").factors(f"{DOWN}.weight")
    assert torch.equal(tensors["blk.1.ffn_down.weight.lora_b"], factors[0])
    assert len(tensors) == 2 * 14
    flags = dict(summary(record, "a.gguf"))["run it"]
    assert "--override-kv llama.context_length=int:2048" in flags
    assert "--rope-freq-base 160000" in flags
    assert "--lora a.gguf -c 2048" in flags


def test_a_compact_adapter_keeps_its_ranks(family, tmp_path: Path) -> None:
    base, extended, _ = family
    extract_lora(base, extended, tmp_path / "a", energy=0.9, layout="compact", verify=False)
    export_gguf(tmp_path / "a", tmp_path / "a.gguf")
    _, tensors = read_gguf(tmp_path / "a.gguf")
    lora = Adapter.open(tmp_path / "a")
    assert tensors["blk.1.ffn_down.weight.lora_a"].shape[0] == lora.rank(f"{DOWN}.weight")


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (
            {"modules_to_save": ["norm"]},
            {"base_model.model.model.norm.weight": torch.ones(64)},
            r"replaces whole tensors \(modules_to_save: 'model.norm.weight'\)",
        ),
        (
            {"target_modules": ["q_proj", "embed_tokens"]},
            {
                "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 80),
                "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(64, 4),
            },
            "changes the embedding",
        ),
        ({"use_dora": True}, {}, "uses use_dora"),
    ],
)
def test_what_llama_cpp_does_not_load_is_refused(
    config: dict[str, Any], tensors: dict[str, Any], message: str, family, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a", config, tensors)
    with pytest.raises(InputError, match=message):
        export_gguf(folder, tmp_path / "a.gguf", base=family[0])
    assert not (tmp_path / "a.gguf").exists()


def test_dense_differences_are_refused(family, tmp_path: Path) -> None:
    base = models.weights(models.LLAMA)
    extended = models.changed(base, rank=4, size=0.03, seed=1, names="")
    b = models.save(tmp_path / "b", models.LLAMA, base)
    e = models.save(tmp_path / "e", models.LLAMA, extended)
    extract_lora(b, e, tmp_path / "a", rank=4, layout="exact", verify=False)
    with pytest.raises(InputError, match="layout exact"):
        export_gguf(tmp_path / "a", tmp_path / "a.gguf")


def test_the_base_must_be_known_and_fit(family, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    with pytest.raises(InputError, match=r"does not say which model it belongs to.*--base"):
        export_gguf(folder, tmp_path / "a.gguf")
    named = adapter(tmp_path / "named", {"base_model_name_or_path": "/nowhere/base"})
    with pytest.raises(InputError, match=r"/nowhere/base, which is not here.*--base"):
        export_gguf(named, tmp_path / "a.gguf")
    small = {**models.LLAMA, "hidden_size": 32}
    other = models.save(tmp_path / "o", small, models.weights(small))
    with pytest.raises(CheckpointError, match="adapter's architecture"):
        export_gguf(folder, tmp_path / "a.gguf", base=other)
    with pytest.raises(InputError, match="--base is for adapters"):
        export_gguf(family[0], tmp_path / "a.gguf", base=other)
