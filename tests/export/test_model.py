"""A model as GGUF: transformers' own GGUF reader computes the same logits from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from gguf_files import read_gguf, speaking
from safetensors.torch import load_file, save_file

from regraft.errors import CheckpointError, InputError
from regraft.export.job import export_gguf

IDS = torch.tensor([[0, 17, 300, 5, 44, 599, 70, 71, 12]])


def logits(folder: Path, **more: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [False, True])
def test_the_file_gives_the_models_logits(tied: bool, tmp_path: Path) -> None:
    model = speaking(tmp_path / "m", tie_word_embeddings=tied)
    export_gguf(model, tmp_path / "m.gguf", dtype="float32")
    _, tensors = read_gguf(tmp_path / "m.gguf")
    assert ("output.weight" in tensors) is not tied
    same = logits(tmp_path, gguf_file="m.gguf")
    # float32 in both files; sums may be taken in another order
    torch.testing.assert_close(same, logits(model), rtol=1e-5, atol=1e-5)


def test_matrices_are_float16_and_vectors_float32(tmp_path: Path) -> None:
    model = speaking(tmp_path / "m")
    record = export_gguf(model, tmp_path / "m.gguf")
    metadata, tensors = read_gguf(tmp_path / "m.gguf")
    state = models.load(model)
    assert metadata["general.file_type"] == 1
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float16 if tensor.ndim == 2 else torch.float32), name
    assert torch.equal(tensors["blk.1.ffn_down.weight"].float(),
                       state["model.layers.1.mlp.down_proj.weight"].half().float())  # fmt: skip
    total = sum(float(v.double().square().sum()) for v in state.values())
    error = sum(
        float((v.half().float() - v).double().square().sum())
        for v in state.values() if v.ndim == 2
    )  # fmt: skip
    assert record.lost_to_rounding == pytest.approx((error / total) ** 0.5, rel=1e-6)
    assert record.tensors == len(tensors)


def test_rows_of_q_and_k_are_interleaved(tmp_path: Path) -> None:
    """Row i of a head's first half and row i of its second become neighbours."""
    model = speaking(tmp_path / "m")
    export_gguf(model, tmp_path / "m.gguf", dtype="float32")
    _, tensors = read_gguf(tmp_path / "m.gguf")
    k = models.load(model)["model.layers.0.self_attn.k_proj.weight"]  # two heads of 16 rows
    head = k[16:32]
    assert torch.equal(tensors["blk.0.attn_k.weight"][16], head[0])
    assert torch.equal(tensors["blk.0.attn_k.weight"][17], head[8])
    assert torch.equal(tensors["blk.0.attn_k.weight"][18], head[1])


def test_the_metadata_says_sizes_context_and_record(tmp_path: Path) -> None:
    model = speaking(tmp_path / "m", **models.LONG)
    record = export_gguf(model, tmp_path / "m.gguf")
    metadata, _ = read_gguf(tmp_path / "m.gguf")
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.context_length"] == 2048
    assert metadata["llama.rope.freq_base"] == 160000.0
    assert metadata["llama.attention.head_count"] == 4
    assert metadata["llama.attention.head_count_kv"] == 2
    assert metadata["llama.block_count"] == 2
    stored = json.loads(metadata["regraft.record"])
    assert stored["kind"] == "export"
    assert stored["model"]["fingerprint"] == record.model.fingerprint


def test_a_file_without_tokenizer_is_for_token_ids(tmp_path: Path) -> None:
    base = models.save(tmp_path / "m", models.LLAMA, models.weights(models.LLAMA))
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json.*--no-tokenizer"):
        export_gguf(base, tmp_path / "m.gguf")
    export_gguf(base, tmp_path / "m.gguf", tokenizer=False)
    metadata, _ = read_gguf(tmp_path / "m.gguf")
    assert metadata["tokenizer.ggml.model"] == "no_vocab"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (models.QWEN2, "is a Qwen2ForCausalLM model and regraft writes GGUF for"),
        (models.GEMMA2, "is a Gemma2ForCausalLM model"),
        ({**models.LLAMA, "hidden_act": "gelu"}, "has the activation gelu"),
        (
            {**models.LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
             "sliding_window": 64},
            "has a sliding window of 64 tokens",
        ),
    ],
)  # fmt: skip
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = models.save(tmp_path / "m", config, models.weights(config))
    with pytest.raises(InputError, match=message):
        export_gguf(model, tmp_path / "m.gguf", tokenizer=False)
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), "lacks the tensor"),
        (
            lambda s: s["model.layers.1.mlp.up_proj.weight"].view(-1)[3:4].fill_(float("nan")),
            "NaN or infinite",
        ),
        (
            lambda s: s["model.layers.1.mlp.up_proj.weight"].view(-1)[3:4].fill_(70000.0),
            r"too large for float16.*--dtype float32",
        ),
    ],
)
def test_broken_weights_are_named(change: Any, message: str, tmp_path: Path) -> None:
    model = speaking(tmp_path / "m")
    state = load_file(model / "model.safetensors")
    change(state)
    save_file(state, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=message):
        export_gguf(model, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
