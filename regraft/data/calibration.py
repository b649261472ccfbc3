"""Long rows of a user's text for calibration, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data.rows import Rows
from regraft.data.sources import Text
from regraft.data.tokens import default_cache, tokenise
from regraft.errors import InputError


@dataclass(frozen=True)
class CalibrationRows:
    """ids: (rows, length) int64. digest: of text and tokenizer."""

    ids: Tensor
    digest: str


def text_of_path(path: str) -> Text:
    """A file (JSON lines or Parquet by its ending, else plain text) or a folder of text files."""
    ending = Path(path).suffix
    if ending in (".jsonl", ".json"):
        return Text("jsonl", path)
    return Text("parquet" if ending == ".parquet" else "text", path)


def calibration_rows(
    path: str, tokenizer: Any, vocabulary: int, *, length: int, tokens: int, seed: int
) -> CalibrationRows:
    """`tokens` // `length` rows of the documents at `path`, joined in random order.

    vocabulary: rows of the model's embedding. Raises InputError where the text is shorter.
    """
    text = tokenise(text_of_path(path), tokenizer, default_cache(), vocabulary)
    rows = Rows("joined", text.lengths(), np.arange(len(text)), length, seed=seed)
    count = tokens // length
    if len(rows) < count:
        fewer = f"--calibrate-tokens {len(rows) * length}"
        raise InputError(
            f"The calibration text {path} has {text.total:,} tokens, {len(rows)} rows of "
            f"{length:,}, and {count} rows are needed; give a longer text, or "
            f"{fewer if len(rows) else 'a shorter --calibrate-length'}."
        )
    ids = [
        np.concatenate([text.slice(piece.document, piece.start, piece.stop) for piece in row])
        for row in rows.rows[:count]
    ]
    return CalibrationRows(torch.from_numpy(np.stack(ids)), text.digest)
