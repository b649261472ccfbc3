"""A model's decoder layers one at a time, with hidden states of whole rows between them.

The model has one layer in memory, into which the weights of each are read in turn; so that the
hidden states of all rows and one layer are all that is held, however deep the model is. Everything
is computed in float32. The model's own code makes masks and rotary tables: it runs as a model of
one layer without a final norm. Models for which this is not the same (embeddings scaled inside the
model, layers of several kinds) are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.checkpoint.config import explain_errors, load_config, quiet
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.hf.roles import checkpoint_roles
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError

_PARTS = ("layers", "embed_tokens", "norm", "rotary_emb")
EXPANDED = "regraft_expanded"
"""Name of `expanded_attention` for transformers."""


class LayerStream:
    """The layers of a checkpoint in order, applied to `hidden` (rows, length, d), float32 on CPU.

    rows: token ids (rows, length). Raises InputError for an architecture that cannot be run by
    layers, CheckpointError for missing or broken weights.
    """

    def __init__(self, checkpoint: Checkpoint, rows: Tensor, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        config = load_config(checkpoint.config, checkpoint.name)
        self.count: int = config.num_hidden_layers
        model = _one_layer_model(checkpoint, config)
        if device.type == "cuda" and model.config._attn_implementation == "sdpa":
            use_expanded_attention(model)
        inner = model.base_model
        if not all(hasattr(inner, part) for part in _PARTS) or _differ(config, self.count):
            raise InputError(_no_layers(checkpoint, model))
        self._prefix = next(name for name, m in model.named_modules() if m is inner.layers)
        embedding = next(name for name, m in model.named_modules() if m is inner.embed_tokens)
        self._stored = {  # parameter of the transformers model -> stored tensor
            f"{role.module}.{name.rpartition('.')[2]}": name
            for name, role in checkpoint_roles(checkpoint).items()
        }
        inner.norm = nn.Identity()
        inner.rotary_emb = type(inner.rotary_emb)(config=inner.config).to(device)
        self._inner = inner.eval()
        self.hidden = self._embedded(f"{embedding}.weight", rows)
        self.layer: Any = inner.layers[0]
        inner.layers = nn.ModuleList()
        plain = type(inner.embed_tokens) is nn.Embedding
        if not (plain and torch.equal(self._forward(0), self.hidden[:1].to(device))):
            raise InputError(_no_layers(checkpoint, model))
        inner.layers = nn.ModuleList([self.layer.to_empty(device=device)])

    def load(self, number: int) -> None:
        """Read the weights of a layer."""
        for name, parameter in self.layer.named_parameters():
            parameter.data.copy_(self._read(f"{self._prefix}.{number}.{name}", parameter.shape))

    def module_name(self, number: int, part: str) -> str:
        """The full name of a module inside a layer."""
        return f"{self._prefix}.{number}.{part}"

    @torch.no_grad()
    def run(self, number: int, *, keep: bool) -> None:
        """Run all rows through the loaded layer, number `number`; `keep` its output as `hidden`.

        Raises InputError where it computes NaN or infinity.
        """
        for row in range(len(self.hidden)):
            output = self._forward(row)
            if not is_finite(output):
                raise InputError(
                    f"{self._checkpoint.name} computes NaN or infinity in layer {number} on the "
                    "calibration text: its weights are broken, or overflow at this length; give "
                    "a sound model or a smaller --calibrate-length."
                )
            if keep:
                self.hidden[row] = output[0].cpu()

    @torch.no_grad()
    def shared_inputs(self, names: Iterable[str]) -> list[list[str]]:
        """Names of modules of the loaded layer, in order of use, grouped by the tensor that they
        get as their input. A module that gets none is in no group."""
        received: list[tuple[Tensor, list[str]]] = []

        def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
                for tensor, members in received:
                    if tensor is inputs[0]:
                        members.append(name)
                        return
                received.append((inputs[0], [name]))

            return hook

        hooks = [
            self.layer.get_submodule(name).register_forward_pre_hook(note(name)) for name in names
        ]
        self._forward(0, 2)
        for hook in hooks:
            hook.remove()
        return [members for _, members in received]

    @torch.no_grad()
    def _forward(self, row: int, length: int | None = None) -> Tensor:
        hidden = self.hidden[row : row + 1, :length].to(self._device)
        output: Tensor = self._inner(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return output

    def _embedded(self, parameter: str, rows: Tensor) -> Tensor:
        """The embeddings of the rows; only those of tokens that occur are read."""
        name = self._name(parameter)
        tokens, index = rows.unique(return_inverse=True)
        table = torch.cat([self._checkpoint.rows(name, t, t + 1).float() for t in tokens.tolist()])
        self._check_finite(name, table)
        return table[index]

    def _read(self, parameter: str, shape: torch.Size) -> Tensor:
        name = self._name(parameter)
        tensor = self._checkpoint.tensor(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"Tensor '{name}' of {self._checkpoint.name} is {list(tensor.shape)}, and its "
                f"config makes it {list(shape)}; correct the config or download the model again."
            )
        self._check_finite(name, tensor)
        return tensor

    def _name(self, parameter: str) -> str:
        if parameter not in self._stored:
            raise CheckpointError(
                f"{self._checkpoint.name} lacks '{parameter}' that its config.json says it has; "
                "download it again."
            )
        return self._stored[parameter]

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        if not is_finite(tensor):
            raise CheckpointError(
                f"Tensor '{name}' of {self._checkpoint.name} holds NaN or infinite numbers; give a "
                "sound checkpoint."
            )


def expanded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query [B, H, s, D], key and value [B, Hk, s, D], whose heads are repeated first.

    On a GPU torch has no float32 kernel for grouped heads but the one that holds all s^2 scores.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, is_causal=causal
    )
    return output.transpose(1, 2).contiguous(), None


def use_expanded_attention(model: Any) -> None:
    """Make a transformers model that would use `sdpa` use `expanded_attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(EXPANDED, expanded_attention)
    AttentionMaskInterface.register(EXPANDED, sdpa_mask)
    model.set_attn_implementation(EXPANDED)


def _one_layer_model(checkpoint: Checkpoint, config: Any) -> Any:
    """The causal language model with one layer, on the meta device in float32."""
    import transformers

    single = copy.deepcopy(config)
    single.num_hidden_layers = 1
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(single, name, value[:1])
    with explain_errors(f"config.json of {checkpoint.name} makes no causal language model",
                   "correct the config"), quiet(), torch.device("meta"):  # fmt: skip
        return transformers.AutoModelForCausalLM.from_config(
            single, dtype=torch.float32, trust_remote_code=False
        )


def _differ(config: Any, count: int) -> bool:
    """Whether the config has a list with unequal values for the layers."""
    lists = [v for v in vars(config).values() if isinstance(v, list) and len(v) == count > 1]
    return any(one != other for values in lists for one, other in pairwise(values))


def _no_layers(checkpoint: Checkpoint, model: Any) -> str:
    return (
        f"regraft cannot run {checkpoint.name} ({type(model).__name__}) layer by layer yet; "
        "extract without --calibrate."
    )
