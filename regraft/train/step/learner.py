"""The model in training: loaded, its trainable part chosen, its loss without logits."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from regraft.checkpoint.config import load_config, meta_model
from regraft.checkpoint.hf.pretrained import empty_model, load_model
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import InputError
from regraft.input_files import JsonObject
from regraft.parallel import Mesh, attach
from regraft.parallel.kernels.kernel import accumulator
from regraft.parallel.shards import Part
from regraft.train.recipe.model import Lora
from regraft.train.recipe.schema import Body, trains_everything
from regraft.train.step.four_bit import check_four_bit, quantize_layers
from regraft.train.step.fused import fuse_rope, fuse_swiglu
from regraft.train.step.lora_linear import fuse_lora
from regraft.train.step.loss import kl_sum, nll_sum, token_scores
from regraft.train.step.memory import HostStore, save_memory
from regraft.train.step.optimizers import check_optimizer
from regraft.train.step.rms_norm import fuse_norms

_GROUPS = {"attention": "self_attn", "mlp": "mlp"}


class Learner(nn.Module):
    """A causal model and its loss as one module, so that FSDP's root sees head and loss too."""

    def __init__(self, model: Any, chunk: int, narrow: torch.dtype | None = None) -> None:
        """narrow: compute in this type by autocast; None: in the parameters' own. The attribute
        keep_attention says whether recomputed layers keep their attention, from the next pass on;
        results do not depend on it."""
        super().__init__()
        self.model, self.chunk, self.narrow = model, chunk, narrow
        self.keep_attention = False
        self.store: HostStore | None = None  # where layers offload

    def forward(
        self,
        part: Part,
        *,
        score: bool = False,
        states: bool = False,
        teacher: tuple[Learner, Tensor] | None = None,
    ) -> Any:
        """The summed NLL of a batch that `Mesh.cut` made. With `score`: (NLL, hit) [B, s]; with
        `states`: the last hidden states [B, s, d]; with a teacher and its states: the summed
        KL(teacher || this)."""
        labels = part["labels"]
        head = self.model.get_output_embeddings()
        with torch.autocast(labels.device.type, self.narrow, enabled=self.narrow is not None):
            hidden = self.hidden(part)
            if states:
                return hidden
            if score:
                return token_scores(hidden, head, labels, self.chunk)
            if teacher is not None:
                other, teacher_states = teacher
                theirs = other.model.get_output_embeddings()
                return kl_sum(hidden, head, teacher_states, theirs, labels, self.chunk)
            return nll_sum(hidden, head, labels, self.chunk)

    def hidden(self, part: Part) -> Tensor:
        """The last hidden states [B, s, d]."""
        inputs = part.copy()
        inputs.pop("labels", None)
        return self.model.model(**inputs, use_cache=False).last_hidden_state

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.model.model.layers

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


def arithmetic(body: Body, device: torch.device) -> torch.dtype:
    """The type layers compute in."""
    if body.dtype != "auto":
        return {
            "float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64
        }[body.dtype]  # fmt: skip
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load(body: Body, checkpoint: Checkpoint, mesh: Mesh) -> Learner:
    """The model ready to train, still on the host: trained parameters float32 (float64 under dtype
    float64), the others in the type of the arithmetic. Where it is read once, all processes but
    the first have shapes only, until `shard` sends them their part.

    Raises InputError where the architecture is not a plain causal decoder, or its heads do not
    divide over the mesh.
    """
    dtype = torch.float32 if trains_everything(body) else arithmetic(body, mesh.device)
    torch.manual_seed(body.seed)
    config = load_config(checkpoint.config, checkpoint.name)
    if mesh.rank and read_once(config, mesh):
        model = empty_model(checkpoint, dtype)
    else:
        model = load_model(checkpoint, dtype=dtype)
    _refuse(model, checkpoint.name)
    return prepare(model, body, mesh)


def untrained_learner(body: Body, config: JsonObject, name: str, mesh: Mesh) -> Learner:
    """The learner of the model `name` with this config.json, on the meta device: sizes and types
    of all parameters without their values.

    Raises what `load` raises for a model, a LoRA, frozen tensors or an optimizer that cannot work.
    """
    if body.load.bits == 4:
        check_four_bit(mesh.device, sharded=mesh.fsdp_mesh is not None)
    model = meta_model(config, name)
    _refuse(model, name)
    learner = prepare(model, body, mesh)
    check_optimizer(body.optimizer, mesh.device, sharded=mesh.fsdp_mesh is not None)
    return learner


def read_once(config: Any, mesh: Mesh) -> bool:
    """Whether the first process alone reads the weights: where FSDP shards them. Tied embeddings
    are read by all, as filling an empty model would untie them; such models are small."""
    return mesh.fsdp_mesh is not None and not config.get_text_config().tie_word_embeddings


def prepare(model: Any, body: Body, mesh: Mesh) -> Learner:
    """Prepare a transformers model for training: our attention, the parameters to train, the memory
    savers of the recipe."""
    dtype = arithmetic(body, mesh.device)
    attach(model, mesh)
    if body.lora is None:
        _freeze(model, body.freeze)
    else:
        _add_lora(model, body.lora)
    if body.load.bits == 4:
        quantize_layers(model.model.layers)
    if not trains_everything(body):
        fuse_lora(model)
    if body.memory.fused_norms:
        fuse_norms(model)
    if body.memory.fused_rope:
        fuse_rope(model)
    if body.memory.fused_swiglu:
        fuse_swiglu(model)
    wide = accumulator(dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(wide if parameter.requires_grad else dtype)
    # hidden states have the type of the arithmetic, whatever that of embedding and norms
    for name, module in model.named_modules():
        if module is model.get_input_embeddings() or re.search(r"norm$", name):
            module.register_forward_hook(lambda _, __, out: out.to(dtype))
    learner = Learner(model, body.memory.loss_chunk, dtype if dtype == torch.bfloat16 else None)
    learner.keep_attention = body.memory.keep_attention is True
    learner.train()
    learner.store = save_memory(
        learner.layers,
        recompute=body.memory.checkpoint,
        offload=body.memory.offload,
        keep_attention=lambda: learner.keep_attention,
        tile=body.memory.tiled_mlp,
    )
    return learner


def lora_targets(model: Any, targets: str) -> list[str]:
    """Leaf names of the linear layers that `targets` selects. InputError for unknown ones."""
    leaves: dict[str, str] = {}
    for name, module in model.model.layers[0].named_modules():
        if isinstance(module, nn.Linear):
            leaves[name.rpartition(".")[2]] = name
    if targets == "all-linear":
        return list(leaves)
    names: list[str] = []
    for word in re.split(r"[,\s]+", targets.strip()):
        if word in _GROUPS:
            names += [leaf for leaf, name in leaves.items() if name.startswith(_GROUPS[word])]
        elif word in leaves:
            names.append(word)
        else:
            raise InputError(
                f"lora.targets: the model has no linear layers '{word}'; it has "
                f"{', '.join(leaves)} (or all-linear, attention, mlp)."
            )
    return names


def _add_lora(model: Any, lora: Lora) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.effective_alpha,
        use_rslora=lora.rslora,
        target_modules=lora_targets(model, lora.targets),
        lora_dropout=0.0,
        bias="none",
    )
    inject_adapter_in_model(config, model)
    for module in model.modules():
        if isinstance(module, LoraLayer):  # else each casts a copy of its input to float32
            module.cast_input_dtype_enabled = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name or (lora.norms and is_norm(name))


def is_norm(name: str) -> bool:
    """Whether a parameter is the weight of a norm."""
    return re.search(r"norm\d*\.weight$", name) is not None


def _freeze(model: Any, parts: list[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            raise InputError(f"freeze: no tensor of the model has '{part}' in its name.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name for part in parts)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("freeze: every tensor is frozen, so nothing would learn.")


def _refuse(model: Any, name: str) -> None:
    """Raise InputError for architectures that this training would silently get wrong."""
    config = model.config
    inner = getattr(model, "model", None)
    if not all(hasattr(inner, part) for part in ("layers", "rotary_emb", "embed_tokens")):
        raise InputError(
            f"{name} is a {config.model_type}, whose layers and rotation are not where "
            "Llama has them; training knows Llama, Mistral, Qwen2, Qwen3 and their like."
        )
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise InputError(
                f"{name} changes its logits by {key}, which the chunked loss does not."
            )
