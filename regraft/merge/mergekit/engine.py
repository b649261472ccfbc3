"""Running a merge in mergekit, in a process of its own, and checking its result.

mergekit (LGPL-3.0) is not a dependency and none of its code is in this package; the user installs
it with `pip install mergekit`. Here it works in float32 for any dtype of the recipe, and its
config.json is replaced by that of the donor with the recipe's context.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from regraft import progress
from regraft.checkpoint.dtypes import dtype_name
from regraft.checkpoint.hf.roles import tensor_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, plan_shards
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.staging import Staging
from regraft.document import Where
from regraft.errors import CheckpointError, RegraftError
from regraft.input_files import JsonObject
from regraft.merge.files.config import output_config
from regraft.merge.files.files import Files, with_new_tokenizer
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.inputs.match import match_tensors
from regraft.merge.inputs.vocabulary import check_alignable, compare_vocabularies, embedding_rows
from regraft.merge.mergekit.translate import mergekit_yaml
from regraft.merge.recipe.recipe import Recipe
from regraft.merge.recipe.schema import BRIDGED
from regraft.records import TensorMerge
from regraft.rope import ContextSpec

# mergekit collects a recipe's models in a set, and takes the tokenizer of the set's first one
_MAIN = """\
from mergekit.config import MergeConfiguration
collect = MergeConfiguration.referenced_models
MergeConfiguration.referenced_models = lambda self: sorted(collect(self), key=str)
from mergekit.scripts.run_yaml import main
main()
"""
_LAST_LINES = 4  # of mergekit's standard error, for a message
_STEP = re.compile(r"(?P<what>[A-Z][^:|]*):\s+\d+%\|[^|]*\| (?P<done>\d+)/(?P<all>\d+) ")


def reason_for_mergekit(recipe: Recipe, inputs: Inputs, engine: str) -> str | None:
    """Why the merge runs in mergekit; None if it runs natively.

    Raises InputError where the requested engine cannot run it, or mergekit is not installed.
    """
    needed = _needed(recipe, inputs)
    if engine == "native" and needed is not None:
        raise recipe.error(needed[1], f"{needed[0]}, which needs --engine mergekit or auto.")
    if engine == "mergekit" and needed is None:
        needed = ("--engine is mergekit", ())
    if needed is None:
        return None
    variant = recipe.body.ties.variant if recipe.body.ties else "mergekit"
    if recipe.body.scale is not None or variant != "mergekit":
        key = "ties" if recipe.body.scale is None else "scale"
        raise recipe.error((key,), f"'{key}' is not for a merge that runs in mergekit.")
    if importlib.util.find_spec("mergekit") is None:
        raise recipe.error(
            needed[1], f"{needed[0]}, and mergekit is not installed; pip install mergekit."
        )
    return needed[0]


def _needed(recipe: Recipe, inputs: Inputs) -> tuple[str, Where] | None:
    """The first feature that is not native, and its location in the recipe."""
    body = recipe.body
    if body.merge_method in BRIDGED:
        return f"{body.merge_method} has no native form", ("merge_method",)
    if body.modules is not None and list(body.modules) not in (["default"], []):
        return "several modules are merged", ("modules",)
    if body.tokenizer is not None and (body.tokenizer.tokens or body.tokenizer.pad_to_multiple_of):
        return "tokens are rearranged", ("tokenizer",)
    key = tokenizer_key(recipe)
    if key is not None:
        vocabularies = compare_vocabularies(inputs)
        rows = vocabularies.rows
        if vocabularies.difference is not None:
            return f"the vocabularies differ ({vocabularies.difference})", (key,)
        if rows is None and len({embedding_rows(one) for one in inputs}) > 1:
            return "the embeddings differ in rows", (key,)
        if rows is not None and any(embedding_rows(one) < rows for one in inputs):
            return "an embedding has fewer rows than the vocabulary", (key,)
    return None


def tokenizer_key(recipe: Recipe) -> str | None:
    """The key of the recipe that asks for one vocabulary; None if there is none."""
    if recipe.body.tokenizer is not None:
        return "tokenizer"
    return None if recipe.body.tokenizer_source is None else "tokenizer_source"


def check_for_mergekit(recipe: Recipe, inputs: Inputs) -> None:
    """Check what mergekit would report only after minutes: shapes, layers, tokens without a row.

    Raises InputError with the recipe's line.
    """
    key = tokenizer_key(recipe)
    if recipe.body.modules is None:
        for _ in match_tensors(recipe, inputs, any_vocabulary=key is not None):
            pass
    if key is not None:
        check_alignable(recipe, inputs, (key,))


@dataclass(frozen=True)
class MergekitResult:
    """The merged tensors, checked and written by `writer`, with the config and the other files."""

    writer: CheckpointWriter
    config: JsonObject
    files: Files
    tensors: dict[str, TensorMerge]


def run_mergekit(
    recipe: Recipe,
    inputs: Inputs,
    donor: Input,
    context: ContextSpec,
    files: Files,
    staging: Staging,
    *,
    seed: int,
    device: torch.device,
    max_shard_bytes: int | None,
    verify: bool,
) -> MergekitResult:
    """Merge in mergekit and copy its tensors to `staging`.

    Raises RegraftError with the last line that mergekit printed where it fails, CheckpointError
    where its result has NaN.
    """
    folder = staging.spool / "mergekit"
    if staging.done("mergekit") is None:
        _run(recipe, inputs, donor, staging.spool, folder, seed, device)
        staging.record("mergekit")
    with Checkpoint.open(folder) as made:
        role_of = tensor_roles(made.config, made.tensors)
        planned = [PlannedTensor.like(name, info) for name, info in made.tensors.items()]
        shards = plan_shards(planned, like=made, max_shard_bytes=max_shard_bytes)
        writer = CheckpointWriter(staging, shards, verify=verify)
        for name in made.tensors:
            if not writer.finished(name):
                _check_finite(made, name)
                writer.copy(name, made)
        tensors = {
            name: TensorMerge(
                role=role_of[name].kind,
                layer=role_of[name].layer,
                shape=list(info.shape),
                dtype=dtype_name(info.dtype),
            )
            for name, info in made.tensors.items()
        }
        dtypes = {t.dtype for t in tensors.values() if t.role == "projection"}
        layers = 1 + max((r.layer for r in role_of.values() if r.layer is not None), default=-1)
        embedding = next(n for n, role in role_of.items() if role.kind == "embedding")
        config = output_config(
            recipe, inputs, donor, context,
            layers=layers, vocabulary=made.tensors[embedding].shape[0], dtypes=dtypes,
        )  # fmt: skip
        if recipe.body.tokenizer is not None or recipe.body.tokenizer_source is not None:
            files = with_new_tokenizer(files, made)
    return MergekitResult(writer, config, files, tensors)


def _run(
    recipe: Recipe,
    inputs: Inputs,
    donor: Input,
    spool: Path,
    out: Path,
    seed: int,
    device: torch.device,
) -> None:
    source = spool / "recipe.yaml"
    source.write_text(mergekit_yaml(recipe, inputs, donor, spool / "views"), encoding="utf-8")
    command = [
        sys.executable, "-c", _MAIN, str(source), str(out),
        "--no-write-model-card", "--no-copy-tokenizer",
        "--random-seed", str(seed), "--lora-merge-cache", str(spool / "lora"),
    ]  # fmt: skip
    if device.type == "cuda":
        command += ["--device", str(device)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with progress.bar("Merging in mergekit", None) as bar:
        status, messages = _follow(command, environment, bar)
    if status != 0 or not (out / "config.json").is_file():
        last = messages[-1] if messages else f"exit code {status}"
        raise RegraftError(
            f"mergekit could not run {recipe.document.name}: {last}; correct the recipe, or leave "
            "it to the native engine."
        )


def _follow(
    command: list[str], environment: dict[str, str], bar: progress.Bar
) -> tuple[int, list[str]]:
    """Run mergekit and show the progress of its own bars. Returns its exit status and last lines.

    It redraws a bar with carriage returns, such as 'Executing graph:  40%|####  | 12/30 [..]'.
    """
    messages: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            for line in process.stderr:  # universal newlines: a carriage return ends a line
                step = _STEP.search(line)
                if step:
                    bar.advance(0, f"{step['what'].strip()}, step {step['done']} of {step['all']}")
                elif line.strip():
                    messages = [*messages, line.strip()][-_LAST_LINES:]
        except BaseException:
            process.kill()
            raise
    return process.returncode, messages


def _check_finite(result: Checkpoint, name: str) -> None:
    if not result.is_finite(name):
        raise CheckpointError(
            f"mergekit gave NaN or infinite numbers in '{name}'; check inputs and weights."
        )
