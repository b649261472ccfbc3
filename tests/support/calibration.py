"""Calibrated extraction of two models on a short text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models

HOW: dict[str, Any] = {"calibrate_length": 64, "calibrate_tokens": "1k"}


def copy_of(pair: Any, folder: Path, change: Any = lambda state, config: None) -> Path:
    """The extended model with a change, without a tokenizer."""
    state, config = models.load(pair[1]), json.loads((pair[1] / "config.json").read_text())
    change(state, config)
    return models.save(folder, config, state)
