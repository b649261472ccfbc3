"""The files beside the weights: tokenizer, chat template, generation config and others.

Tokenizer files come from one model: the recipe's `tokenizer_source`, else the donor of the config.
The others come from that donor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from regraft.adapters.folder import RECORD
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.errors import CheckpointError
from regraft.input_files import JsonObject, read_json_object
from regraft.merge.files.chat_template import TEMPLATE_FILE, choose_template
from regraft.merge.files.config import config_bytes
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.recipe.recipe import Recipe
from regraft.records import MergeDonor

_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "spiece.model", "chat_template*", "generation_config.json",
)  # fmt: skip
_OWN = (RECORD, "graft.png", "merge.png", "mergekit_config.yml")


@dataclass(frozen=True)
class Files:
    """Files to copy: `tokenizer` from `donor`, `others` from `other_donor`, the donor of the
    config. template: replaces the chat template, unless None."""

    donor: Checkpoint
    tokenizer: list[str]
    other_donor: Checkpoint
    others: list[str]
    template: str | None

    def record(self, config: Input, why: str) -> MergeDonor:
        """The record of the donors; `config` is that of the config, chosen because of `why`."""
        return MergeDonor(
            config=str(config),
            why=why,
            tokenizer=self.donor.name,
            files=self.tokenizer + self.others,
            chat_template="given" if self.template else "of the tokenizer",
        )


def choose_files(recipe: Recipe, inputs: Inputs, donor: Input) -> Files:
    """Choose the files to copy. Raises InputError for a tokenizer source that is no input."""
    chosen = _tokenizer_source(recipe, inputs, donor).checkpoint
    names = [name for name in chosen.other_files() if _is_tokenizer(name)]
    others = [
        name
        for name in donor.checkpoint.other_files()
        if not _is_tokenizer(name) and name not in _OWN
    ]
    template = choose_template(recipe, inputs)
    if template is not None and (path := chosen.file("tokenizer_config.json")) is not None:
        read_json_object(path, CheckpointError)  # `write_files` has to remove its template
    return Files(chosen, names, donor.checkpoint, others, template)


def with_new_tokenizer(files: Files, made: Checkpoint) -> Files:
    """`files` with the tokenizer of `made`, which mergekit wrote for an aligned vocabulary."""
    names = [name for name in made.other_files() if _is_tokenizer(name)]
    generation = [name for name in files.tokenizer if name == "generation_config.json"]
    return replace(files, donor=made, tokenizer=names, others=files.others + generation)


def _tokenizer_source(recipe: Recipe, inputs: Inputs, donor: Input) -> Input:
    """The input whose tokenizer the output gets where no vocabulary is aligned."""
    ref, where = recipe.body.tokenizer_source, "tokenizer_source"
    if recipe.body.tokenizer is not None:
        ref, where = recipe.body.tokenizer.source, "tokenizer"
    if ref is None or str(ref) in ("union", "base"):
        return donor
    for one in inputs:
        if ref in (one.ref, one.ref.model) or ref.model == one.ref.model:
            return one
    raise recipe.error((where,), f"the tokenizer's source {ref} is no input of this recipe.")


def write_files(writer: CheckpointWriter, folder: Path, config: JsonObject, files: Files) -> None:
    """Write config, tokenizer and other files to the staging folder."""
    writer.add_file("config.json", config_bytes(config))
    for one, names in ((files.other_donor, files.others), (files.donor, files.tokenizer)):
        for name in names:
            path = one.file(name)
            if path is not None:
                writer.add_file(name, path)
    if files.template is None:
        return
    writer.add_file(TEMPLATE_FILE, files.template.encode())
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        content = read_json_object(settings, CheckpointError)
        content.pop("chat_template", None)
        writer.add_file(settings.name, config_bytes(content))


def _is_tokenizer(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _TOKENIZER)
