"""Tokenizers and models small enough to be examined in tests."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from models import LLAMA, save, weights

from regraft.data.generate import grammar
from regraft.data.toy_language import WORDS, write_tokenizer


def text_tokenizer() -> Any:
    """A byte-level BPE of 600 tokens, learned from generated text; puts `<s>` in front."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()), bos_token="<s>", eos_token="</s>"
    )


@cache
def _bpe() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(islice(grammar.sentences("tokenizer"), 300), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return str(core.to_str())


@cache
def world_tokenizer() -> Any:
    """The toys' tokenizer of whole words."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def toy(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random Llama that speaks the world of toys."""
    settings = {**LLAMA, "vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2, **config}
    save(folder, settings, weights(settings, seed))
    write_tokenizer(folder)
    return folder


def evaluate(*args: Any, **more: Any) -> dict[str, Any]:
    """`evaluate_models`, with its result as in result.json."""
    from regraft.evaluate.job import evaluate_models
    from regraft.records import dump_json

    result: dict[str, Any] = json.loads(dump_json(evaluate_models(*args, **more)))
    return result


def answers(right: int, count: int = 100) -> list[Any]:
    """`count` answers of which the first `right` ones are right."""
    from regraft.evaluate.result import Answer

    return [
        Answer(
            number=n, tokens=60, unique_share=1.0, depth=None, on_grid=False, scoring="teacher",
            score=float(n < right), hash="",
        )
        for n in range(count)
    ]  # fmt: skip


def record(**fields: Any) -> Any:
    """An EvaluationRecord that has nothing but `fields`."""
    from regraft.evaluate.result import EvaluationRecord, PublishedSuites
    from regraft.evaluate.settings import Settings

    empty: dict[str, Any] = {
        "matrix": False, "models": {}, "settings": Settings(), "tasks": {}, "cells": {},
        "overall": {}, "overall_tasks": [], "effective_length": {}, "measures": {},
        "published": PublishedSuites(scores={}, retention={}), "samples": [], "versions": {},
    }  # fmt: skip
    return EvaluationRecord(**{**empty, **fields})


def cell(score: float, **fields: Any) -> Any:
    """A Cell with this score."""
    from regraft.evaluate.result import Cell

    return Cell(
        score=score, items=50, interval=(score, score), tokens=60, unique_share=1.0, **fields
    )


SPEAKER: dict[str, Any] = {**LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1}


def speaker(folder: Path, **config: Any) -> Path:
    """A random Llama whose tokenizer knows every text."""
    save(folder, SPEAKER | config, weights(SPEAKER | config))
    text_tokenizer().save_pretrained(folder)
    return folder
