"""(model or adapter) -> one GGUF file for llama.cpp, streamed and published by rename.

Checked first, then written tensor by tensor: float32 from the stored values, one rounding to the
file's type. The record is in the file, under `regraft.record`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from regraft import progress
from regraft.adapters.apply.check import base_of
from regraft.adapters.folder import digests
from regraft.adapters.reader import Adapter, is_adapter
from regraft.adapters.serving import llamacpp_flags
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.sink import CheckpointWriter
from regraft.checkpoint.write.target import FILE_MARK
from regraft.device import full_precision
from regraft.errors import InputError
from regraft.export.adapter import LoraContent, adapter_content
from regraft.export.content import DTYPES, Content, OutputTensor
from regraft.export.gguf_file import lay_out, require_gguf
from regraft.export.llama import ARCHITECTURE
from regraft.export.model import model_content
from regraft.job import Job
from regraft.records import AdapterFiles, ExportRecord, ModelRecord, to_json, versions
from regraft.rope import ContextSpec
from regraft.units import format_bytes
from regraft.write import json_text

_FILE = "export.gguf"  # in the staging folder


@full_precision()
def export_gguf(
    source: str | Path,
    out: str | Path | None,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    tokenizer: bool = True,
    verify: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
) -> ExportRecord:
    """Write `source`, a model or an adapter, as the GGUF file `out`. Returns its record.

    base: the model that an adapter belongs to (its sizes are needed); the one that its record or
    config names by default. dtype: 'float16' or 'float32' of the matrices; float16 for a model,
    float32 for an adapter by default. tokenizer: False leaves it out of a model's file, which then
    takes token ids only. verify: read everything back from disk. dry_run: check everything and
    return the record with its plan; `out` may be None then.

    Raises InputError for what llama.cpp cannot load, CheckpointError for broken files, OutputError.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype '{dtype}' is not one of {', '.join(DTYPES)}.")
    require_gguf()
    job = None
    if out is not None:
        inputs = [source, *([base] if base is not None else [])]
        job = Job(out, inputs=inputs, overwrite=overwrite, resume=resume, file=_FILE)
    elif not dry_run:
        raise InputError("export needs an output file: regraft export MODEL -o model.gguf")
    lora = Adapter.open(source) if is_adapter(source) else None
    if lora is None and base is not None:
        raise InputError(f"--base is for adapters, and {source} is a model.")
    with Checkpoint.open(source if lora is None else _base(lora, base)) as model:
        made: LoraContent | None = None
        if lora is not None:
            if job is not None and base is None:
                job.add_inputs([model.name])
            dtype = dtype or "float32"
            made = adapter_content(lora, model, DTYPES[dtype])
            content = made.content
            context = lora.context[1] if lora.context else checkpoint_context(model)
        else:
            dtype = dtype or "float16"
            content = model_content(model, DTYPES[dtype], tokenizer=tokenizer)
            context = checkpoint_context(model)
        record = ExportRecord(
            model=ModelRecord(
                name=model.name,
                revision=model.revision,
                fingerprint=_fingerprint(model, lora),
            ),
            adapter=AdapterFiles(name=lora.name, sha256=digests(lora.folder)) if lora else None,
            context=context.to_record(),
            dtype=dtype,
            arguments={"tokenizer": tokenizer and lora is None},
            versions={**versions(), "gguf": version("gguf")},
            alpha=made.alpha if made else None,
            rescaled=made.rescaled if made else 0,
        )
        size = sum(tensor.planned.nbytes for tensor in content.tensors)
        if dry_run:
            return replace(record, plan={"tensors": len(content.tensors), "write_bytes": size})
        assert job is not None
        lost = _write(job, record, content, verify)
    return replace(record, tensors=len(content.tensors), bytes=size, lost_to_rounding=lost)


def _base(lora: Adapter, given: str | Path | None) -> str:
    """The model whose sizes the file of the adapter depends on."""
    if given is not None:
        return str(given)
    known = base_of(lora)
    if not known.name:
        raise InputError(
            f"{lora.name} does not say which model it belongs to, and a GGUF LoRA needs that "
            "model's number of heads; name the model with --base."
        )
    folder = Path(known.name).expanduser()
    if not folder.exists() and (known.name.startswith(("/", ".")) or known.name.count("/") != 1):
        raise InputError(
            f"The base of {lora.name} is {known.name}, which is not here; name a copy or a "
            "relative of it with --base."
        )
    return f"{known.name}@{known.revision}" if known.revision else known.name


def _fingerprint(model: Checkpoint, lora: Adapter | None) -> str:
    """The model's fingerprint; that of an adapter's base is the one in the adapter's record, since
    its weights are not read."""
    return model.fingerprint() if lora is None else base_of(lora).fingerprint or ""


def _write(job: Job, record: ExportRecord, content: Content, verify: bool) -> float | None:
    """Write and publish the file; ||error|| / ||weights|| of rounding, None where a resumed run did
    not see all tensors."""
    planned = [tensor.planned for tensor in content.tensors]
    with job.start(to_json(record)) as staging:

        def describe(writer: Any) -> None:
            writer.add_string(FILE_MARK.decode(), json_text(to_json(record)))
            content.describe(writer)

        head = staging.spool / "head.gguf"
        writer = CheckpointWriter(
            staging, {_FILE: planned}, verify=verify,
            lay_out=lambda tensors: lay_out(tensors, head, ARCHITECTURE, describe),
        )  # fmt: skip
        sums = _Sums()
        total = sum(tensor.nbytes for tensor in planned)
        with progress.bar("Writing", total, unit="bytes") as bar:
            for tensor in content.tensors:
                if writer.finished(tensor.planned.name):
                    sums.complete = False
                else:
                    writer.write(tensor.planned.name, _rounded(tensor, sums))
                bar.advance(tensor.planned.nbytes)
        writer.finish()
        staging.publish()
    return sums.lost


@dataclass
class _Sums:
    """Squared norms over all tensors. complete: whether no tensor was left out."""

    weights: float = 0.0
    error: float = 0.0
    complete: bool = True

    @property
    def lost(self) -> float | None:
        if not self.complete:
            return None
        return math.sqrt(self.error / self.weights) if self.weights else 0.0


def _rounded(tensor: OutputTensor, sums: _Sums) -> Iterator[torch.Tensor]:
    """The blocks in the file's type. Raises InputError for numbers that it cannot hold."""
    for block in tensor.blocks():
        stored = block.to(tensor.planned.dtype)
        if stored.dtype != block.dtype:
            if not is_finite(stored):
                raise InputError(
                    f"'{tensor.source}' holds numbers too large for float16; use --dtype float32."
                )
            sums.error += float((stored.float() - block).square_().sum(dtype=torch.float64))
        sums.weights += float(block.square().sum(dtype=torch.float64))
        yield stored.contiguous()


def summary(record: ExportRecord, out: str) -> list[tuple[str, str]]:
    """The lines printed after an export: (label, text)."""
    context = ContextSpec.from_record(record.context)
    lines = [("context", context.describe())]
    if record.tensors is not None and record.bytes is not None:
        size = f"{record.tensors} tensors, {record.dtype}, {format_bytes(record.bytes)}"
        lines.append(("written", size))
    if record.lost_to_rounding:
        lines.append(("rounding", f"{record.lost_to_rounding:.2e} of the weights' norm"))
    if record.rescaled:
        text = f"B of {record.rescaled} modules rescaled, since llama.cpp has one alpha for all"
        lines.append(("scales", text))
    if record.adapter is None:
        lines.append(("run it", f"llama-server -m {out} -c {context.max_position_embeddings}"))
    else:
        lines.append(("run it", llamacpp_flags(context, adapter=out)))
    return lines
