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
below which it is not hidden. `mesh.guard()` around a step makes one sentence of a lost process.

There is no global state, no context manager and no patch: what attention must know travels with
the batch, as the keyword argument `context_parallel` that `cut` puts beside the tokens. Documents
are cut from each other only where `documents` says so; positions may jump (PoSE) and never do.

Files, each importing only from those before it: `layout` (which token lies where), `kernels/`
(attention with its log-sum-exp, one file a device; `spans` runs a kernel over spans, `choose` picks
one), `kept` (a result that waits for a recomputation), `exchange/` (`gather`, `ring` and `ulysses`;
`choose` picks one), `mesh` (processes), `shards` (cut and join), `attention` (what transformers
calls).
"""

from regraft.parallel.attention import NAME, attach
from regraft.parallel.exchange.choose import Machine, Work, needed_bandwidth
from regraft.parallel.mesh import TIMEOUT
from regraft.parallel.shards import Mesh, Shard

__all__ = ["NAME", "TIMEOUT", "Machine", "Mesh", "Shard", "Work", "attach", "needed_bandwidth"]
