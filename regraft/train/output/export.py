"""Export of a run: a model for any transformers, or an adapter for `regraft apply`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regraft.adapters.writer import AdapterModule, totals_of, write_adapter, write_adapter_record
from regraft.checkpoint.dtypes import OUTPUT_DTYPES
from regraft.checkpoint.hf.roles import tensor_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.write.shard_plan import PlannedTensor, write_safetensors
from regraft.errors import RegraftError
from regraft.parallel import Mesh
from regraft.records import AdapterRecord, ContextChange, ModelRecord, ModuleRecord, versions
from regraft.rope import ContextSpec
from regraft.train.recipe.schema import Body
from regraft.train.step.learner import Learner, is_norm
from regraft.write import copy_file, write_json


def export_model(
    folder: Path, learner: Learner, base: Checkpoint, context: ContextSpec, body: Body, mesh: Mesh
) -> None:
    """Write a transformers checkpoint, with LoRA folded in, the context in both spellings, and the
    base's tokenizer and other small files. Collective.

    Raises RegraftError where a weight is not finite in the exported dtype.
    """
    state = _folded(learner, base, mesh)
    if mesh.rank:
        return
    dtypes = {name: info.dtype for name, info in base.tensors.items()}
    chosen = OUTPUT_DTYPES.get(body.export.dtype)
    usual = next(iter(dtypes.values()))
    state = {name: value.to(chosen or dtypes.get(name, usual)) for name, value in state.items()}
    if learner.model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    _write_model(folder, state)
    config = context.write_into(base.config)
    if chosen is not None:
        config.pop("dtype" if "torch_dtype" in config else "torch_dtype", None)
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = body.export.dtype
    write_json(folder / "config.json", config)
    _copy_files(folder, base)


def export_adapter(
    folder: Path,
    learner: Learner,
    base: Checkpoint,
    contexts: tuple[ContextSpec, ContextSpec],
    body: Body,
    mesh: Mesh,
    source: str,
) -> AdapterRecord | None:
    """Write an adapter: PEFT's two files, regraft.json, the lineage sketch, and trained norms as
    dense differences. Returns its record on the first process, else None. Collective.

    contexts: before and after; source: name of the base. The scale alpha / r (or alpha / sqrt(r))
    is folded into B. Raises RegraftError where a number is not finite.
    """
    trained = {name: _full(value) for name, value in learner.trained().items()}
    if mesh.rank:
        return None
    dtype = OUTPUT_DTYPES.get(body.export.dtype, next(iter(base.tensors.values())).dtype)
    lora = body.lora
    assert lora is not None
    alpha = lora.effective_alpha
    scale = alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    pairs = _factor_pairs(trained, scale)
    modules = [
        AdapterModule(name, "linear", (b.shape[0], a.shape[1]), lora.rank)
        for name, (b, a) in pairs.items()
    ]
    differences = {
        name: value.float().cpu() - base.tensor(name).float()
        for name, value in sorted(trained.items())
        if is_norm(name)
    }
    _refuse_nonfinite(differences)
    roundings = write_adapter(
        folder,
        base,
        tensor_roles(base.config, base.tensors),
        modules,
        pairs.values(),
        dtype=dtype,
        uniform_rank=lora.rank,
        base_name=source.partition("@")[0],
        differences=(_planned(differences), differences.items()),
    )
    records = {}
    for name, (b, a) in pairs.items():
        norm = math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))
        rounding = math.sqrt(roundings[name]) / norm if norm else 0.0
        records[name] = ModuleRecord(
            shape=[b.shape[0], a.shape[1]],
            rank=lora.rank,
            delta_norm=norm,
            error=rounding,
            rounding_error=rounding,
        )
    record = AdapterRecord(
        made_by="train",
        base=ModelRecord(
            name=source,
            revision=base.revision,
            fingerprint=base.fingerprint(),
            model_type=base.config.get("model_type"),
        ),
        extended=ModelRecord(
            name=f"{source}, trained", revision=None, fingerprint=f"train:{_digest(pairs)}"
        ),
        context=ContextChange(base=contexts[0].to_record(), extended=contexts[1].to_record()),
        layout="exact" if differences else "portable",
        differences=list(differences),
        modules=records,
        totals=totals_of(records, uniform_rank=lora.rank, dtype=dtype),
        arguments={"rank": lora.rank, "alpha": alpha, "rslora": lora.rslora},
        versions=versions(),
    )
    write_adapter_record(folder, record)
    return record


def _factor_pairs(trained: Mapping[str, Tensor], scale: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (B, A) in float64, with the scaling in B."""
    sides: dict[str, dict[str, Tensor]] = {}
    for name, value in trained.items():
        if ".lora_" in name:
            module, side, _, _ = name.rsplit(".", 3)  # ...q_proj.lora_A.default.weight
            sides.setdefault(module, {})[side] = value.double()
    return {
        module: (pair["lora_B"] * scale, pair["lora_A"]) for module, pair in sorted(sides.items())
    }


def _digest(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, (b, a) in pairs.items():
        digest.update(name.encode() + b.numpy().tobytes() + a.numpy().tobytes())
    return digest.hexdigest()


def _folded(learner: Learner, base: Checkpoint, mesh: Mesh) -> dict[str, Tensor]:
    """The model's tensors by the names without LoRA; a matrix with one is W + s B A, where W is the
    base's if it was trained in 4 bits. Collective."""
    from peft.tuners.lora import LoraLayer

    layers = {
        name: module
        for name, module in learner.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    state: dict[str, Tensor] = {}
    for name, value in learner.model.state_dict().items():
        if ".lora_" in name or name.endswith(".scales"):
            continue
        if name.endswith(".packed"):
            name = name.replace(".packed", ".weight")
            whole = base.tensor(name.replace(".base_layer", ""))
        else:
            whole = _full(value)
        module = name.replace(".base_layer.weight", "")
        if module in layers:
            layer = layers[module]
            a = _full(layer.lora_A["default"].weight)
            b = _full(layer.lora_B["default"].weight)
            whole = whole.double() + layer.scaling["default"] * (b.double() @ a.double())
        if mesh.rank == 0:
            state[name.replace(".base_layer", "")] = whole
    return state


def _full(value: Tensor) -> Tensor:
    """A tensor on the CPU; a sharded one is gathered from all processes."""
    from torch.distributed.tensor import DTensor

    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def _write_model(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights as transformers does: one file, or shards of 5 GB with an index."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(state), max_shard_size="5GB")
    for file, names in split.filename_to_tensors.items():
        _write(folder / file, {name: state[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    _refuse_nonfinite(ordered)
    write_safetensors(path, ordered.items(), _planned(ordered), {"format": "pt"})


def _planned(tensors: Mapping[str, Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor.like(name, value) for name, value in tensors.items()]


def _refuse_nonfinite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise RegraftError(
                f"'{name}' holds NaN or numbers too large for {str(value.dtype).partition('.')[2]};"
                " nothing is exported."
            )


def _copy_files(folder: Path, base: Checkpoint) -> None:
    for name in base.other_files():
        path = base.file(name)
        if path is not None and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(path, folder / name)
