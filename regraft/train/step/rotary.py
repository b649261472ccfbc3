"""RoPE fixed for a stage: angles in float64, cos and sin in float32, and a check that the model
rotates by them.

transformers multiplies positions and frequencies in float32, which is 0.03 rad off at a million
tokens and 0.13 at four; its dynamic RoPE types depend on the positions that one device holds; and a
theta passed the wrong way is ignored in silence. So the model's rotary module is replaced, and what
reaches the layers is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regraft.data.batch import IGNORED
from regraft.errors import RegraftError
from regraft.parallel import Mesh
from regraft.parallel.kernels.kernel import accumulator
from regraft.rope import ContextSpec, inverse_frequencies, men_bound
from regraft.train.step.learner import Learner
from regraft.units import format_tokens


class Rotary(nn.Module):
    """cos and sin [B, S, rotary_dim] of position ids [B, S]; frequencies frozen for `length`."""

    def __init__(self, spec: ContextSpec, head_dim: int, length: int) -> None:
        super().__init__()
        self.spec, self.head_dim, self.length = spec, head_dim, length
        # a plain attribute: buffers are cast along with the model
        self.frequencies, self.attention = inverse_frequencies(spec, head_dim, length)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        self.frequencies = self.frequencies.to(position_ids.device)
        angles = position_ids.double()[..., None] * self.frequencies
        table = accumulator(x.dtype)
        cos, sin = ((f(angles) * self.attention).to(table) for f in (torch.cos, torch.sin))
        return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def set_rotary(learner: Learner, mesh: Mesh, spec: ContextSpec, length: int) -> Rotary:
    """Put a stage's frequencies into the model and verify that it rotates by them. Collective.

    length: tokens of the context, for frequencies that depend on it. Raises RegraftError where the
    model rotates by others.
    """
    rotary = fix_rotary(learner.model, spec, length)
    repeats = 2 * mesh.context * mesh.ulysses  # every rank needs tokens of its own

    def forward(ids: Tensor, positions: Tensor) -> None:
        batch = {
            "input_ids": ids.cpu().repeat(1, repeats),
            "position_ids": positions.cpu().repeat(1, repeats),
            "labels": torch.full((1, 8 * repeats), IGNORED),
        }
        learner(mesh.cut(batch), score=True)

    check_rotary(forward, learner.layers[0], rotary, mesh.device)
    return rotary


def fix_rotary(model: Any, spec: ContextSpec, length: int) -> Rotary:
    """Put the stage's frequencies into a transformers model and its config."""
    inner, config = model.model, model.config
    rotary = Rotary(spec, head_size(config), length)
    inner.rotary_emb = rotary
    config.rope_parameters = dict(spec.rope_parameters)
    config.max_position_embeddings = spec.max_position_embeddings
    return rotary


@contextmanager
def frequencies_for(learner: Learner, length: int) -> Iterator[None]:
    """Within the block the model has the frequencies with which it is served at `length` tokens:
    other ones than the stage's where longrope changes its factors between the two."""
    inner = learner.model.model
    before = inner.rotary_emb
    if before.spec.rope_type == "longrope":
        inner.rotary_emb = Rotary(before.spec, before.head_dim, length)
    try:
        yield
    finally:
        inner.rotary_emb = before


@torch.no_grad()
def check_rotary(forward: Any, layer: nn.Module, rotary: Rotary, device: torch.device) -> None:
    """Run a few far positions and compare what `layer` receives with tables computed independently.

    forward: called with (ids, positions), both [1, 8]. layer: the first decoder layer.
    Raises RegraftError where the model rotates by anything else.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    positions = torch.linspace(0, rotary.length - 1, 8, dtype=torch.float64).long().to(device)
    try:
        forward(torch.zeros(1, 8, dtype=torch.long, device=device), positions[None])
    finally:
        handle.remove()
    from regraft.rope import tables

    expected = tables(rotary.spec, rotary.head_dim, positions, rotary.length)
    for received, table in zip(seen[0] if seen else (), expected, strict=False):
        rows = received.reshape(-1, received.shape[-1]).to(table)
        known = [bool(((table - row).abs().amax(-1) < 2e-6).any()) for row in rows]
        if received.dtype.itemsize >= 4 and all(known):
            continue
        seen = []
    if not seen:
        raise RegraftError(
            f"The model does not rotate by {rotary.spec.describe()}, although its config says so; "
            "this architecture keeps its frequencies elsewhere, please report it."
        )


def wavelengths(rotary: Rotary) -> list[str]:
    """Lines to print at the start: the longest wavelengths, in tokens."""
    longest = 2 * torch.pi / rotary.frequencies[rotary.frequencies > 0]
    covered = int((longest <= rotary.length).sum())
    lines = [
        rotary.spec.describe(),
        f"longest wavelength {int(longest.max()):,} tokens",
        f"{covered} of {len(longest)} pairs rotate once within {format_tokens(rotary.length)}",
    ]
    bound = men_bound(rotary.length)
    if rotary.spec.rope_type == "default" and rotary.spec.theta < bound:
        lines.append(
            f"theta lies below Men's bound {bound:,.0f}: perplexity may look fine while retrieval "
            "fails"
        )
    return lines


def head_size(config: Any) -> int:
    """Size of an attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
