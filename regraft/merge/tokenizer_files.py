"""Which files beside the weights the output gets: tokenizer, chat template, generation config.

They come from one model, `tokenizer_source` if the recipe names one, else the donor of the config.
All tokenizers of the inputs must give a token the same number, or mergekit has to align them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from regraft.adapters.folder import RECORD
from regraft.checkpoint.sink import CheckpointWriter
from regraft.checkpoint.source import Checkpoint
from regraft.document import Where
from regraft.errors import CheckpointError
from regraft.input_files import parse_json, read_json_object, read_text
from regraft.merge.donor import config_bytes
from regraft.merge.inputs import Input, Inputs
from regraft.merge.recipe import Recipe
from regraft.record import MergeDonor

TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "spiece.model", "chat_template*", "generation_config.json",
)  # fmt: skip
_OWN = (RECORD, "graft.png", "merge.png", "mergekit_config.yml")
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Files:
    """`tokenizer` files come from `donor`, `others` from the config's donor; `template` replaces
    the chat template."""

    donor: Checkpoint
    tokenizer: list[str]
    other_donor: Checkpoint
    others: list[str]
    template: str | None

    def record(self, config: Input, why: str) -> MergeDonor:
        """What the output's record says of the donors."""
        return MergeDonor(
            config=str(config),
            why=why,
            tokenizer=self.donor.name,
            files=self.tokenizer + self.others,
            chat_template="given" if self.template else "of the tokenizer",
        )


def choose(recipe: Recipe, inputs: Inputs, donor: Input) -> Files:
    """Settle who gives what. Raises InputError for a tokenizer source that is no input."""
    chosen = source(recipe, inputs, donor).checkpoint
    names = [name for name in chosen.other_files() if is_tokenizer(name)]
    others = [
        name
        for name in donor.checkpoint.other_files()
        if not is_tokenizer(name) and name not in _OWN
    ]
    return Files(chosen, names, donor.checkpoint, others, _template(recipe, inputs))


def realigned(files: Files, made: Checkpoint) -> Files:
    """The same with the tokenizer that mergekit made for the new vocabulary."""
    names = [name for name in made.other_files() if is_tokenizer(name)]
    kept = [name for name in files.tokenizer if name == "generation_config.json"]
    return replace(files, donor=made, tokenizer=names, others=files.others + kept)


def source(recipe: Recipe, inputs: Inputs, donor: Input) -> Input:
    """The input that gives the tokenizer, if all vocabularies are one."""
    ref, where = recipe.body.tokenizer_source, "tokenizer_source"
    if recipe.body.tokenizer is not None:
        ref, where = recipe.body.tokenizer.source, "tokenizer"
    if ref is None or str(ref) in ("union", "base"):
        return donor
    for one in inputs:
        if ref in (one.ref, one.ref.model) or ref.model == one.ref.model:
            return one
    raise recipe.error((where,), f"the tokenizer's source {ref} is no input of this recipe.")


@dataclass(frozen=True)
class Vocabularies:
    """What the inputs' tokenizers say. rows: tokens of the one vocabulary that all share, numbered
    from 0 without a gap; None if they differ. difference: the first one, in words."""

    rows: int | None
    difference: str | None


def compare_vocabularies(inputs: Inputs) -> Vocabularies:
    """Whether every input that has a tokenizer gives each token the same number.

    Raises CheckpointError where a tokenizer.json cannot be read.
    """
    first: tuple[Input, dict[str, int] | str] | None = None
    seen: dict[str, dict[str, int] | str] = {}
    for one in inputs:
        path = _tokenizer(one)
        if path is None:
            continue
        data = path.read_bytes()
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
    """Refuse before mergekit starts what its alignment of vocabularies cannot do: numbers that two
    tokens share, or without an embedding row. Raises InputError by line."""
    if all(_tokenizer(one) is None for one in inputs):
        raise recipe.error(where, "no input has a tokenizer.json or tokenizer.model to align by.")
    for one in inputs:
        path = _tokenizer(one)
        vocabulary = _vocabulary(path, path.read_bytes()) if path is not None else ""
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
    """Rows of the input's embedding."""
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


def write(writer: CheckpointWriter, folder: Path, config: dict[str, Any], files: Files) -> None:
    """Put config, tokenizer and other files into the staging folder."""
    writer.add_file("config.json", config_bytes(config))
    for one, names in ((files.other_donor, files.others), (files.donor, files.tokenizer)):
        for name in names:
            path = one.file(name)
            if path is not None:
                writer.add_file(name, path)
    if files.template is None:
        return
    writer.add_file(_TEMPLATE, files.template.encode())
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        kept = read_json_object(settings, CheckpointError)
        kept.pop("chat_template", None)
        writer.add_file(settings.name, config_bytes(kept))


def is_tokenizer(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in TOKENIZER)


def _vocabulary(path: Path, data: bytes) -> dict[str, int] | str:
    """Token -> number, or the file's hash where it is not JSON."""
    if path.suffix != ".json":
        return hashlib.sha256(data).hexdigest()
    content = parse_json(data, str(path), CheckpointError)
    try:
        listed = content["model"]["vocab"]
        vocabulary = (
            dict(listed) if isinstance(listed, dict) else {t[0]: i for i, t in enumerate(listed)}
        )
        added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        if not all(type(number) is int for number in (*vocabulary.values(), *added.values())):
            raise TypeError("a token's number is no integer")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no tokenizer of the tokenizers library ({type(error).__name__}); download "
            "the model again."
        ) from None
    return {**vocabulary, **added}


def _template(recipe: Recipe, inputs: Inputs) -> str | None:
    """The chat template that the recipe asks for: Jinja text, a name of mergekit's, or 'auto'."""
    wanted = recipe.body.chat_template
    if not wanted:
        return None
    if wanted == "auto":
        found = Counter(text for one in inputs if (text := _own_template(one)))
        return found.most_common(1)[0][0] if found else None
    if "{" in wanted and len(wanted) >= 20:
        return wanted
    known: dict[str, Path] = {}
    spec = importlib.util.find_spec("mergekit")
    if spec is not None and spec.origin:
        folder = Path(spec.origin).parent / "_data" / "chat_templates"
        known = {path.stem: path for path in folder.glob("*.jinja")}
    if wanted in known:
        return known[wanted].read_text(encoding="utf-8")
    choice = f"one of {', '.join(sorted(known))}" if known else "a name that mergekit, if installed"
    raise recipe.error(
        ("chat_template",), f"chat_template '{wanted[:40]}' is neither Jinja text nor 'auto' nor "
        f"{choice}{'' if known else ', knows'}.",
    )  # fmt: skip


def _own_template(one: Input) -> str | None:
    path = one.checkpoint.file(_TEMPLATE)
    if path is not None:
        return read_text(path, CheckpointError).strip()
    path = one.checkpoint.file("tokenizer_config.json")
    if path is None:
        return None
    template = read_json_object(path, CheckpointError).get("chat_template")
    if isinstance(template, list):  # of {"name": .., "template": ..}
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return template.strip() if isinstance(template, str) else None
