"""Models and PEFT adapters with weights; nothing else in the package builds them.

A model gets the tensors that its `Checkpoint` lists, read by regraft, so transformers opens no
pytorch_model.bin, adapter_config.json or file that config.json names, and runs no code of a
repository. Config and tensors are compared before anything is built. Whatever transformers raises
becomes one sentence that names the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from regraft.checkpoint.config import explain_errors, load_config, quiet
from regraft.checkpoint.dtypes import FLOAT_DTYPES, dtype_name
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.read.source import Checkpoint
from regraft.checkpoint.read.tensor_file import TensorFile
from regraft.errors import CheckpointError, short_repr
from regraft.input_files import read_json_object


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The causal language model of a checkpoint on the meta device; its weights are loaded later.

    Raises CheckpointError as `load_model` does.
    """
    import transformers

    config = load_config(checkpoint.config, checkpoint.name)
    with explain_errors(f"config.json of {checkpoint.name} makes no causal language model",
                   "correct the config"), quiet(), torch.device("meta"):  # fmt: skip
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )


def load_model(
    checkpoint: Checkpoint,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The causal language model of a checkpoint, in memory on the CPU, in eval mode.

    config: a config.json to use instead of the checkpoint's own, such as one with another RoPE.
    dtype: of the weights; None: the dtype in the config, else that of most stored bytes.

    Raises CheckpointError where config and tensors disagree in number, shape or kind, where a
    tensor is missing, holds integers, NaN or infinity, and for what transformers raises.

    Its generation_config has the stop tokens of generation_config.json or config.json and nothing
    else: beams, penalties and lengths of the author's would make greedy text something else.
    """
    from transformers import GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    name = checkpoint.name
    raw = checkpoint.config if config is None else config
    built = load_config(raw, name)
    if type(built) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(f"{name} is a {built.model_type}, which is no causal language model.")
    check_tensors(checkpoint, built)
    dtype = dtype or _stored_dtype(checkpoint, built)
    generation = GenerationConfig(eos_token_id=_stop_tokens(checkpoint, built))
    checkpoint.fetch()
    source = _Source(checkpoint)
    with (
        explain_errors(f"{name} cannot be loaded", "check its config.json and weights"),
        quiet(),
    ):
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(built)]
        try:
            model, info = model_class.from_pretrained(
                None, config=built, state_dict=source.tensors(), dtype=dtype,
                generation_config=generation, output_loading_info=True,
                ignore_mismatched_sizes=True, trust_remote_code=False, local_files_only=True,
            )  # fmt: skip
        except Exception:
            source.raise_error()
            raise
    source.raise_error()
    # transformers fills these with random numbers
    broken = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if broken:
        raise CheckpointError(
            f"{name} lacks {len(broken)} tensors or has them in another shape than its config.json "
            f"says, {min(broken)} among them; download it again."
        )
    return model


def load_peft_adapter(model: Any, folder: Path) -> Any:
    """The PeftModel of a model and a LoRA folder, as PEFT reads it. Raises CheckpointError.

    The tensors are handed to PEFT, which maps the file into memory: one that becomes shorter
    meanwhile would end the process.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict

    with TensorFile(folder / "adapter_model.safetensors") as file:
        tensors = {name: file.tensor(name) for name in file.tensors}
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 for a property that was renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # It also warns of merging into a tied embedding; here nothing is merged.
        warnings.filterwarnings("ignore", ".*tie_word_embeddings", UserWarning)
        with explain_errors(
            "PEFT does not load the adapter", "please report it, or go on with --no-verify"
        ):
            config = LoraConfig.from_pretrained(str(folder))
            loaded = PeftModel(model, config, autocast_adapter_dtype=False)
            set_peft_model_state_dict(loaded, tensors)
            return loaded


class _Source:
    """The tensors of a checkpoint for transformers, each read when transformers needs it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._error: CheckpointError | None = None

    def tensors(self) -> dict[str, _Lazy]:
        return {name: _Lazy(self, name) for name in self._checkpoint.tensors}

    def read(self, name: str) -> torch.Tensor:
        try:
            tensor = self._checkpoint.tensor(name)
            if not is_finite(tensor):
                raise CheckpointError(
                    f"Tensor '{name}' of {self._checkpoint.name} holds NaN or infinity; its "
                    "weights are broken, download or make the model again."
                )
        except CheckpointError as error:
            self._error = error  # transformers reports errors of its threads in its own words
            raise
        return tensor

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class _Lazy:
    """A tensor that is read by indexing, like a slice of the safetensors library."""

    def __init__(self, source: _Source, name: str) -> None:
        self._source, self._name = source, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._source.read(self._name)[index]


def check_tensors(checkpoint: Checkpoint, built: Any) -> None:
    """Raise CheckpointError where the stored tensors are not those of the config's model.

    Tensors of the same name are compared by shape and dtype, all others by their number of elements
    in total.
    """
    import transformers

    name = checkpoint.name
    with explain_errors(f"config.json of {name} makes no causal language model",
                   "correct the config"), quiet(), torch.device("meta"):  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(built, trust_remote_code=False)
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        info = checkpoint.tensors.get(key)
        if info is not None and info.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"Tensor '{key}' of {name} has the shape {list(info.shape)}, and config.json makes "
                f"it {list(parameter.shape)}; correct the config or download the model again."
            )
        if info is not None and info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"Tensor '{key}' of {name} is {dtype_name(info.dtype)}, and "
                "weights are floating-point numbers; use a checkpoint that is not quantised."
            )
    expected = sum(parameter.numel() for parameter in parameters.values())
    stored = sum(torch.Size(info.shape).numel() for info in checkpoint.tensors.values())
    if expected > 2 * stored:  # tied matrices are stored once
        raise CheckpointError(
            f"config.json of {name} describes {expected:,} weights and {stored:,} are stored; "
            "correct the config or download the model again."
        )


def _stop_tokens(checkpoint: Checkpoint, built: Any) -> list[int] | None:
    """The ids of the tokens after which generation stops."""
    settings: Mapping[str, Any] = {}
    where = f"generation_config.json of {checkpoint.name}"
    if (path := checkpoint.file("generation_config.json")) is not None:
        settings = read_json_object(path, CheckpointError, remedy="correct or remove it")
    if (stops := settings.get("eos_token_id")) is None:
        stops = getattr(built.get_text_config(), "eos_token_id", None)
        where = f"config.json of {checkpoint.name}"
    if stops is None or stops == []:
        return None
    tokens = stops if isinstance(stops, list) else [stops]
    if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise CheckpointError(
            f"eos_token_id in {where} is {short_repr(stops)}, and a token has a whole number; "
            "correct it."
        )
    return tokens


def for_inference(model: Any, device: torch.device) -> Any:
    """A loaded model on a device, without dropout; float32 instead of float16 on a CPU."""
    if device.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return model.to(device).eval()


def _stored_dtype(checkpoint: Checkpoint, built: Any) -> torch.dtype:
    """The dtype that the config states, else that of most stored bytes."""
    stated = getattr(built, "dtype", None)
    stated = getattr(torch, stated, None) if isinstance(stated, str) else stated
    if stated in FLOAT_DTYPES:
        return stated
    sizes: dict[torch.dtype, int] = {}
    for info in checkpoint.tensors.values():
        if info.dtype in FLOAT_DTYPES:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
