"""One long sequence on many devices: exact causal attention over a cut sequence.

    mesh = Mesh.create(context=4, ulysses=2)      # under torchrun; one process needs no launcher
    attach(model, mesh)                           # a transformers or PEFT model
    part = mesh.cut(batch)                        # the labels in it are shifted already
    labels = part.pop("labels")
    hidden = model(**part).logits                 # this rank's tokens; attention sees all of them
    loss = nll_sum(hidden, labels) / mesh.sum_tokens(labels)

Summed over all processes this loss and its gradients are those of one process. FSDP2 averages
gradients over `mesh.fsdp_mesh`, which is all `mesh.size` processes: multiply the local loss by
`mesh.size` there. Ranks with the same `mesh.data_rank` must load the same batch (`cut` checks).

`mesh.describe(model, length)` is the line for the log: kernel, exchange and why, and the bandwidth
below which it is not hidden. `mesh.guard()` around a step raises one sentence for a lost process.

There is no global state, no context manager and no patch: the argument `context_parallel`, which
`cut` puts into the batch, has all that attention needs. Documents are separate only where
`documents` says so; a jump in positions (PoSE) does not separate them.

Files, each importing only from those before it: `layout` (which token is on which rank), `kernels/`
(attention with its log-sum-exp, one file a device; `spans` runs a kernel over spans, `choose` picks
one), `kept_attention` (a result that its layer's recomputation uses again), `exchange/` (`gather`
and `ring`, which `function` makes differentiable, and `ulysses`; `choose` picks one), `groups`
(process groups), `mesh` (processes), `shards` (cut and join), `attention` (what transformers
calls).
"""

from regraft.parallel.attention import NAME, attach
from regraft.parallel.exchange.choose import Machine, Work, needed_bandwidth
from regraft.parallel.mesh import TIMEOUT
from regraft.parallel.shards import Mesh, Shard

__all__ = ["NAME", "TIMEOUT", "Machine", "Mesh", "Shard", "Work", "attach", "needed_bandwidth"]
