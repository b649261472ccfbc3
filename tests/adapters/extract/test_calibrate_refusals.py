"""Texts, tokenizers and models that extract-lora --calibrate refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from calibration import HOW, copy_of
from evaluated import text_tokenizer

from regraft.adapters.extract.extract import extract_lora
from regraft.data.toy_language import WORDS, write_tokenizer
from regraft.errors import CheckpointError, InputError


def refused(pair: Any, tmp_path: Path, error: type[Exception], match: str, **how: Any) -> None:
    base, extended, text = pair
    how = {"calibrate": text, **HOW, **how}
    with pytest.raises(error, match=match) as caught:
        extract_lora(base, extended, tmp_path / "out", verify=False, dry_run=True, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"calibrate_tokens": "1M"}, r"has [\d,]+ tokens, \d+ rows of 64, and 16384 rows are"),
        ({"calibrate_length": "4k"}, "more than the context of .*extended, 2048 tokens"),
        ({"calibrate_tokens": 32}, "make no row"),
        ({"calibrate_tokens": "1M"}, r"give a longer text, or --calibrate-tokens \d{4}\.$"),
        ({"calibrate_length": "2k", "calibrate_tokens": "2k"}, "or a shorter --calibrate-length"),
        ({"calibrate_length": "long"}, "^--calibrate-length 'long' is not a token count"),
        ({"calibrate": None}, "need --calibrate TEXT"),
        ({"calibrate": "nowhere.txt"}, "no such file"),
    ],
)
def test_impossible_calibrations_are_refused_before_any_work(how, match, pair, tmp_path):
    refused(pair, tmp_path, InputError, match, **how)


def test_tokenizers_that_are_missing_foreign_or_too_large_are_refused(pair, tmp_path):
    bare = copy_of(pair, tmp_path / "bare")
    refused((pair[0], bare, pair[2]), tmp_path, CheckpointError, "bare has no tokenizer")
    text_tokenizer().save_pretrained(bare)
    refused((pair[0], bare, pair[2]), tmp_path, InputError, "The tokenizer gives token")

    def more_rows(state: Any, config: Any) -> None:
        config["vocab_size"] = 700
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, 700 - len(WORDS)))

    foreign = copy_of(pair, tmp_path / "foreign", more_rows)
    text_tokenizer().save_pretrained(foreign)
    match = "The tokenizers of .*base and .*foreign read the calibration text differently"
    refused((pair[0], foreign, pair[2]), tmp_path, InputError, match)


def test_a_model_that_computes_nan_is_refused_with_its_layer(pair, tmp_path):
    def overflow(state: Any, config: Any) -> None:
        state["model.layers.1.mlp.up_proj.weight"] *= 1e30
        state["model.layers.1.mlp.down_proj.weight"] *= 1e30

    broken = copy_of(pair, tmp_path / "broken", overflow)
    write_tokenizer(broken)
    with pytest.raises(InputError, match="broken computes NaN or infinity in layer 1 on the"):
        extract_lora(
            pair[0], broken, tmp_path / "a", rank=2, force=True, verify=False,
            calibrate=pair[2], **HOW,
        )  # fmt: skip


def test_an_architecture_that_cannot_run_by_layers_is_refused(pair, tmp_path):
    """Gemma 2 scales its embeddings inside the model, so that one layer alone is another model."""
    config = {**models.GEMMA2, "vocab_size": len(WORDS)}
    base, extended, _ = models.family(tmp_path, config=config, rank=2)
    write_tokenizer(base)
    write_tokenizer(extended)
    refused(
        (base, extended, pair[2]), tmp_path, InputError, "Gemma2ForCausalLM. layer by layer yet"
    )
