"""The steps in which a tokenizer splits a text before its model merges characters to tokens."""

from __future__ import annotations

from typing import Any

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (f"split {_LLAMA3_SPLIT}", "bytes")
SMOLLM = ("digits", "gpt-2", "bytes")
GPT2 = ("gpt-2", "bytes")


def steps(pre_tokenizer: Any) -> tuple[str, ...]:
    """The steps of the `pre_tokenizer` of a tokenizer.json, equal to one of the constants above
    if it is that model's."""
    return tuple(_steps(pre_tokenizer))


def _steps(pre_tokenizer: Any) -> list[str]:
    if not isinstance(pre_tokenizer, dict):
        return ["none"]
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return [p for step in pre_tokenizer.get("pretokenizers") or [] for p in _steps(step)]
    if kind == "ByteLevel" and not pre_tokenizer.get("add_prefix_space"):
        return ["gpt-2", "bytes"] if pre_tokenizer.get("use_regex", True) else ["bytes"]
    if kind == "Digits" and pre_tokenizer.get("individual_digits"):
        return ["digits"]
    if kind == "Split" and pre_tokenizer.get("behavior") == "Isolated":
        pattern = pre_tokenizer.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        return [f"split {expression}"] if not pre_tokenizer.get("invert") else ["other"]
    return ["other"]
