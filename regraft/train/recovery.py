"""The short fine-tune after a graft: until short text reads as it did to the ungrafted model.

The teacher is the derivative before the graft, with its own RoPE. Drift is how much more NLL the
model has than the teacher on held-out short documents. Distillation adds KL(teacher || model) on
rows of short text to the loss (Hinton et al., arXiv 1503.02531), long rows keep the plain one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.checkpoint.source import Checkpoint
from regraft.data.batch import IGNORED, Row
from regraft.errors import InputError
from regraft.rope import ContextSpec
from regraft.train.corpus import Corpus
from regraft.train.recipe.recipe import Recipe
from regraft.train.step.fsdp import shard
from regraft.train.step.learner import Learner, arithmetic, load
from regraft.train.step.rotary import fix_rotary
from regraft.train.validation import document_rows, scores


class Recovery:
    """What a model is held against. `teacher` None: nothing, and the stages run to their end."""

    def __init__(self, teacher: Learner | None, rows: list[Row], corpus: Corpus) -> None:
        self.teacher, self._rows, self._corpus = teacher, rows, corpus
        self._wanted = self._nll(teacher) if teacher is not None else 0.0

    def drift(self, learner: Learner) -> float:
        """Mean NLL of held-out short text, less the teacher's, in nats. Collective."""
        learner.eval()
        found = self._nll(learner) - self._wanted
        learner.train()
        return found

    def distance(self, learner: Learner, part: dict[str, Any], short: list[bool]) -> Tensor:
        """KL(teacher || learner) summed over the tokens of the batch's short rows."""
        assert self.teacher is not None
        rows = torch.tensor(short, device=part["labels"].device)
        labels = part["labels"].where(rows[:, None], IGNORED)
        with torch.no_grad():
            wanted = self.teacher(part, states=True)
        part = {**part, "labels": labels}
        return learner(part, teacher=(self.teacher, wanted))

    def _nll(self, learner: Learner) -> float:
        nll, _, valid = scores(learner, self._rows, self._corpus.mesh)
        return float(nll.sum() / valid.sum())


def begin_recovery(
    recipe: Recipe, learner: Learner, corpus: Corpus, context: ContextSpec
) -> Recovery:
    """Load the teacher and let it read the short text once. Collective.

    Raises InputError where no short document is held out or the teacher has another vocabulary.
    """
    settings, mesh = recipe.body.recover, corpus.mesh
    if settings.teacher is None:
        return Recovery(None, [], corpus)
    held = [
        (name, int(document))
        for name in recipe.short_sources()
        for document in corpus.held[name]
    ][: settings.rows]  # fmt: skip
    if not held:
        raise InputError(
            "recover: no short document is held out; raise data.held_out or give more documents."
        )
    with Checkpoint.open(settings.teacher) as checkpoint:
        spec = ContextSpec.from_config(checkpoint.config)
        if checkpoint.config.get("vocab_size") != learner.model.config.vocab_size:
            raise InputError(
                f"The teacher {settings.teacher} has {checkpoint.config.get('vocab_size')} tokens "
                f"and the model {learner.model.config.vocab_size}; give the ungrafted derivative."
            )
        teacher = load(recipe.body, checkpoint, settings.teacher, mesh)
    fix_rotary(teacher.model, spec, spec.max_position_embeddings)
    teacher.requires_grad_(False)
    teacher.to(arithmetic(recipe.body, mesh.device)).eval()
    shard(teacher, recipe.body, mesh)
    longest = max(int(corpus.tokens[name].lengths()[document]) for name, document in held)
    rows = document_rows(corpus, held, min(longest, spec.max_position_embeddings))
    fix_rotary(learner.model, context, context.max_position_embeddings)
    return Recovery(teacher, rows, corpus)


@torch.no_grad()
def add_noise(learner: Learner, share: float, seed: int) -> None:
    """Normal noise on every trained matrix, `share` of the matrix's own standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in learner.trained().values():
        if parameter.ndim == 2:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(parameter.std() * share * noise.to(parameter))
