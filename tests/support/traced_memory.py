"""Live bytes of a real training step, counted by shape alone: no weights, no arithmetic.

Under FakeTensorMode tensors have shapes, types and lifetimes but no numbers, so a step of
Llama-3-8B's sizes takes a second here. Every storage is counted from its first appearance to its
end.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from regraft.data.batch import IGNORED
from regraft.parallel import Mesh
from regraft.parallel.kernels.choose import choose
from regraft.parallel.shards import Shard
from regraft.rope import ContextSpec
from regraft.train.recipe.schema import Body
from regraft.train.step import optimizers
from regraft.train.step.learner import Learner, prepare
from regraft.train.step.rotary import fix_rotary


class LiveBytes(TorchDispatchMode):
    """`peak`: most bytes of storages alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self._seen: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def end() -> None:
            self._seen.discard(key)
            self.live -= size

        weakref.finalize(storage, end)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def traced_peak(sizes: dict[str, int], body: Body, length: int) -> tuple[int, Learner]:
    """(peak bytes of the second step on one row of `length`, the learner)."""
    mesh = Mesh.create()
    config = LlamaConfig(
        **sizes,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    head = sizes["hidden_size"] // sizes["num_attention_heads"]
    choose("cpu", torch.bfloat16, head, mesh.kernel)  # tried now: it cannot be without numbers
    dtype = torch.bfloat16 if body.method == "lora" else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True):
        with unset_fake_temporarily(), torch.device("meta"):
            model = LlamaForCausalLM._from_config(config, dtype=dtype)
            learner = prepare(model, body, mesh)
        for module in learner.modules():
            for name, old in list(module._parameters.items()):
                if old is not None:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    module._parameters[name] = torch.nn.Parameter(new, old.requires_grad)
            for name, old in list(module._buffers.items()):
                if old is not None:
                    module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
        fix_rotary(model, ContextSpec.from_config(config.to_dict()), length)
        parameters = learner.trained()
        made = optimizers.make(parameters, body.optimizer)
        optimizers.set_rate(made, 1e-4)
        counter = LiveBytes()
        for tensor in [*learner.parameters(), *learner.buffers()]:
            counter.add(tensor)
        part = {
            "input_ids": torch.zeros(1, length, dtype=torch.long),
            "position_ids": torch.zeros(1, length, dtype=torch.long),
            "labels": torch.full((1, length), IGNORED),
        }
        part["context_parallel"] = one_document(mesh, length)
        for _ in range(2):
            counter.peak = counter.live
            with counter:
                nll = learner(part)
                nll.backward()
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
                for optimizer in made:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                del nll
    return counter.peak, learner


def one_document(mesh: Mesh, length: int) -> Shard:
    """What a mesh of one process makes of a row that is one document."""
    with unset_fake_temporarily():
        part = mesh.cut({"input_ids": torch.zeros(1, length, dtype=torch.long)})
    return part["context_parallel"]
