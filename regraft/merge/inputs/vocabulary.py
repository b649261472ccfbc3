"""Comparison of the inputs' vocabularies, and the check that mergekit can align them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from regraft.document import Where
from regraft.errors import CheckpointError
from regraft.input_files import parse_json, read_bytes
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.recipe.recipe import Recipe


@dataclass(frozen=True)
class Vocabularies:
    """The result of a comparison. rows: tokens of the vocabulary that all inputs share, numbered
    from 0 without a gap, else None. difference: a sentence on the first difference, if there is
    one."""

    rows: int | None
    difference: str | None


def compare_vocabularies(inputs: Inputs) -> Vocabularies:
    """Compare the numbers of all tokens over the inputs that have a tokenizer.

    Raises CheckpointError where a tokenizer.json cannot be read.
    """
    first: tuple[Input, dict[str, int] | str] | None = None
    seen: dict[str, dict[str, int] | str] = {}
    for one in inputs:
        path = _tokenizer(one)
        if path is None:
            continue
        data = read_bytes(path, CheckpointError)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in seen:
            seen[digest] = _vocabulary(path, data)
        if first is None:
            first = one, seen[digest]
        elif seen[digest] != first[1]:
            return Vocabularies(None, _difference(first[0], first[1], one, seen[digest]))
    if first is None or isinstance(first[1], str):
        return Vocabularies(None, None)
    numbers = sorted(first[1].values())
    return Vocabularies(len(numbers) if numbers == list(range(len(numbers))) else None, None)


def check_alignable(recipe: Recipe, inputs: Inputs, where: Where) -> None:
    """Raise InputError where mergekit could not align the vocabularies: two tokens share a number,
    or a number has no row in the embedding. where: the key of the recipe that asks for it."""
    if all(_tokenizer(one) is None for one in inputs):
        raise recipe.error(where, "no input has a tokenizer.json or tokenizer.model to align by.")
    for one in inputs:
        path = _tokenizer(one)
        vocabulary = (
            _vocabulary(path, read_bytes(path, CheckpointError)) if path is not None else ""
        )
        if isinstance(vocabulary, str):
            continue
        rows = embedding_rows(one)
        numbers: dict[int, str] = {}
        for token, number in vocabulary.items():
            if not 0 <= number < rows:
                raise recipe.error(
                    where, f"token {token[:40]!r} of {one} has number {number}, and its embedding "
                    f"has rows 0 to {rows - 1}; correct {path}.",
                )  # fmt: skip
            if number in numbers:
                raise recipe.error(
                    where, f"tokens {numbers[number][:40]!r} and {token[:40]!r} of {one} share the "
                    f"number {number}; correct {path}.",
                )  # fmt: skip
            numbers[number] = token


def embedding_rows(one: Input) -> int:
    """Rows of the input's embedding, the smallest if it has several."""
    rows = [one.info(n).shape[0] for n, role in one.role_of.items() if role.kind == "embedding"]
    return min(rows, default=0)


def _tokenizer(one: Input) -> Path | None:
    return one.checkpoint.file("tokenizer.json") or one.checkpoint.file("tokenizer.model")


def _difference(
    one: Input, vocabulary: dict[str, int] | str, other: Input, second: dict[str, int] | str
) -> str:
    if isinstance(vocabulary, str) or isinstance(second, str):
        return f"the tokenizers of {one} and {other} differ"
    token = next(t for t in {**vocabulary, **second} if vocabulary.get(t) != second.get(t))
    numbers = [f"{v.get(token, 'none')} in {m}" for m, v in ((one, vocabulary), (other, second))]
    return f"token {token[:40]!r} has number {' and '.join(numbers)}"


def _vocabulary(path: Path, data: bytes) -> dict[str, int] | str:
    """Token -> number; for a file that is not JSON, its hash."""
    if path.suffix != ".json":
        return hashlib.sha256(data).hexdigest()
    try:
        content = parse_json(data, str(path), CheckpointError)
        listed = content["model"]["vocab"]
        vocabulary = (
            dict(listed) if isinstance(listed, dict) else {t[0]: i for i, t in enumerate(listed)}
        )
        added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        if not all(type(number) is int for number in (*vocabulary.values(), *added.values())):
            raise TypeError("a token's number is no integer")
        if not all(isinstance(token, str) for token in (*vocabulary, *added)):
            raise TypeError("a token is no string")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no tokenizer of the tokenizers library ({type(error).__name__}); download "
            "the model again."
        ) from None
    return {**vocabulary, **added}
