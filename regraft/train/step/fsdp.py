"""Parameters sharded over all processes by FSDP2, a layer at a time: no device holds the whole."""

from __future__ import annotations

import torch.distributed as dist

from regraft.parallel import Mesh
from regraft.parallel.kernels.kernel import accumulator
from regraft.train.recipe.schema import Body
from regraft.train.step.learner import Learner, arithmetic, read_once


def shard(learner: Learner, body: Body, mesh: Mesh) -> None:
    """Move the model to the mesh's device, in place: all of it, or this process's part.

    Where only the first process has read the weights, it sends them, a tensor at a time.
    Collective.
    """
    if mesh.fsdp_mesh is None:
        learner.to(mesh.device)
        return
    mesh.wait()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    once = read_once(learner.model.config, mesh)
    whole = learner.state_dict() if once and mesh.rank == 0 else {}
    wrap_layers(learner, body, mesh)
    if once:
        if mesh.rank:
            learner.to_empty(device=mesh.device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(learner, whole, options=options)
        for buffer in learner.buffers():  # a model's own constants are in no state dict
            dist.broadcast(buffer, 0)


def wrap_layers(learner: Learner, body: Body, mesh: Mesh) -> None:
    """Let FSDP shard the parameters over the processes, if there are several.

    Each decoder layer is gathered for its own forward and backward, the rest (embedding, last
    norm, head) with the root, which is the learner, so the loss has the whole head.
    Gradients are reduced in float32 (float64 where that is the arithmetic).
    """
    if mesh.fsdp_mesh is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = arithmetic(body, mesh.device)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=accumulator(dtype), cast_forward_inputs=False
    )
    for layer in learner.layers:
        fully_shard(layer, mesh=mesh.fsdp_mesh, mp_policy=policy)
    fully_shard(learner, mesh=mesh.fsdp_mesh, mp_policy=policy)
