"""A tokenizer in GGUF: the same tokens, and a refusal of those that llama.cpp cuts otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import read_gguf, speaking

from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError
from regraft.export.job import export_gguf
from regraft.export.vocabulary import read_vocabulary

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(expression: str) -> dict[str, Any]:
    pattern = {"Regex": expression}
    parts = [
        {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}, BYTES
    ]  # fmt: skip
    return {"type": "Sequence", "pretokenizers": parts}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return speaking(tmp_path / "m")


def edited(folder: Path, **changes: Any) -> Checkpoint:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return Checkpoint.open(folder)


def test_transformers_reads_the_same_tokenizer_back(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_gguf(model, tmp_path / "m.gguf")
    text = "The river is 12 metres wide, and the fox's den is near.\n"
    original = AutoTokenizer.from_pretrained(model)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    plain = {"add_special_tokens": False}
    assert again(text, **plain)["input_ids"] == original(text, **plain)["input_ids"]


def test_tokens_special_ids_and_unused_ids(model: Path, tmp_path: Path) -> None:
    export_gguf(model, tmp_path / "m.gguf")
    metadata, _ = read_gguf(tmp_path / "m.gguf")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 604
    assert (tokens[0], types[0], types[5]) == ("<s>", 3, 1)
    assert (tokens[603], types[603]) == ("[PAD603]", 5)
    assert metadata["tokenizer.ggml.bos_token_id"] == 0
    assert metadata["tokenizer.ggml.eos_token_id"] == 1
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert all(merge.count(" ") == 1 for merge in metadata["tokenizer.ggml.merges"])


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({**BYTES, "use_regex": True}, "gpt-2"),
        (split(LLAMA3), "llama-bpe"),
        (
            {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}]},
            "smollm",
        ),
    ],
)  # fmt: skip
def test_the_pre_tokenizer_has_llama_cpps_name(
    pre_tokenizer: dict[str, Any], name: str, model: Path
) -> None:
    assert read_vocabulary(edited(model, pre_tokenizer=pre_tokenizer), 604).pre_tokenizer == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": split(r"\p{N}{1,3}| ?\p{L}+")}, "cuts text in another way"),
        ({"pre_tokenizer": None}, "cuts text in another way"),
        ({"normalizer": {"type": "NFC"}}, "normalizes its text"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "WordLevel"),
        ({"model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}},
         "BPE with byte fallback"),
    ],
)  # fmt: skip
def test_another_tokenizer_is_refused(changes: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(InputError, match=f"{message}.*--no-tokenizer"):
        read_vocabulary(edited(model, **changes), 604)


def test_more_tokens_than_embeddings_are_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to another model"):
        read_vocabulary(Checkpoint.open(model), 500)
