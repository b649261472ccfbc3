"""The short fine-tune after a graft, until the NLL of short text is that of the ungrafted model.

The teacher is the derivative before the graft, with its own RoPE. Drift is the NLL of the model
minus that of the teacher on held-out short documents. Distillation adds KL(teacher || model) to the
loss of short rows (Hinton et al., arXiv 1503.02531); the loss of long rows does not change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regraft.checkpoint.read.source import Checkpoint
from regraft.data.batch import IGNORED, Row
from regraft.errors import InputError, RegraftError
from regraft.parallel.shards import Batch
from regraft.rope import ContextSpec
from regraft.train.corpus import Corpus
from regraft.train.recipe.recipe import Recipe
from regraft.train.step.fsdp import shard
from regraft.train.step.learner import Learner, arithmetic, load
from regraft.train.step.rotary import fix_rotary
from regraft.train.validation import document_rows, scores


class Recovery:
    """The teacher, with which a model is compared on `rows`. teacher: None for a recovery without
    one, whose stages run to their end."""

    def __init__(self, teacher: Learner | None, rows: list[Row], corpus: Corpus) -> None:
        self.teacher, self._rows, self._corpus = teacher, rows, corpus
        self._teacher_nll = 0.0 if teacher is None else self._nll(teacher, "teacher")

    def drift(self, learner: Learner) -> float:
        """Mean NLL of held-out short text minus the teacher's, in nats a token. Collective.

        Raises RegraftError where it is not finite.
        """
        learner.eval()
        drift = self._nll(learner, "model") - self._teacher_nll
        learner.train()
        return drift

    def distance(self, learner: Learner, part: Batch, short: list[bool]) -> Tensor:
        """KL(teacher || learner) summed over the tokens of the batch's short rows."""
        assert self.teacher is not None
        rows = torch.tensor(short, device=part["labels"].device)
        labels = part["labels"].where(rows[:, None], IGNORED)
        with torch.no_grad():
            states = self.teacher(part, states=True)
        part = {**part, "labels": labels}
        return learner(part, teacher=(self.teacher, states))

    def _nll(self, learner: Learner, name: str) -> float:
        nll, _, valid = scores(learner, self._rows, self._corpus.mesh)
        mean = float(nll.sum() / valid.sum())
        if not math.isfinite(mean):
            raise RegraftError(
                f"The NLL of the {name} on the held-out short text is {mean}: check its weights."
            )
        return mean


def begin_recovery(
    recipe: Recipe, learner: Learner, corpus: Corpus, context: ContextSpec
) -> Recovery:
    """Load the teacher and score the short text with it once. Collective.

    context: the model's, in which its drift is measured. Raises InputError as `check_recovery`.
    """
    settings, mesh = recipe.body.recover, corpus.mesh
    if settings.teacher is None:
        return Recovery(None, [], corpus)
    with Checkpoint.open(settings.teacher) as checkpoint:
        spec = _teacher_context(recipe, checkpoint, learner.model.config.vocab_size)
        teacher = load(recipe.body, checkpoint, mesh)
    fix_rotary(teacher.model, spec, spec.max_position_embeddings)
    teacher.requires_grad_(False)
    teacher.to(arithmetic(recipe.body, mesh.device)).eval()
    shard(teacher, recipe.body, mesh)
    rows = _short_rows(recipe, corpus, spec)
    fix_rotary(learner.model, context, context.max_position_embeddings)
    return Recovery(teacher, rows, corpus)


def check_recovery(recipe: Recipe, corpus: Corpus, vocabulary: int) -> None:
    """Raise InputError where no short document is held out, or the teacher does not fit the model.

    vocabulary: the model's number of tokens.
    """
    settings = recipe.body.recover
    if settings.teacher is None:
        return
    short_documents(recipe, corpus)
    with Checkpoint.open(settings.teacher) as checkpoint:
        _short_rows(recipe, corpus, _teacher_context(recipe, checkpoint, vocabulary))


def short_documents(recipe: Recipe, corpus: Corpus) -> list[tuple[str, int]]:
    """(source, document) of the held-out short text that the drift is measured on."""
    documents = [
        (name, int(document))
        for name in recipe.short_sources()
        for document in corpus.held_out[name]
    ][: recipe.body.recover.rows]  # fmt: skip
    if not documents:
        raise InputError(f"recover: of the short sources {corpus.why_none_held_out()}.")
    return documents


def _short_rows(recipe: Recipe, corpus: Corpus, context: ContextSpec) -> list[Row]:
    """Rows of the held-out short text, as much of it as the teacher's context has room for."""
    documents = short_documents(recipe, corpus)
    longest = max(int(corpus.tokens[name].lengths()[number]) for name, number in documents)
    length = min(longest, context.max_position_embeddings)
    rows = document_rows(corpus, documents, length)
    if not rows:
        raise InputError(
            f"recover: no held-out short document has anything to learn in its first {length:,} "
            "tokens; give others."
        )
    return rows


def _teacher_context(recipe: Recipe, teacher: Checkpoint, vocabulary: int) -> ContextSpec:
    spec = ContextSpec.from_config(teacher.config)
    if teacher.config.get("vocab_size") != vocabulary:
        raise recipe.error(
            ("recover", "teacher"),
            f"the teacher {teacher.name} has {teacher.config.get('vocab_size')} tokens and the "
            f"model {vocabulary}; give the ungrafted derivative",
        )
    if spec.is_layered:
        raise recipe.error(
            ("recover", "teacher"),
            f"the teacher {teacher.name} rotates differently by layer type; training needs one "
            "RoPE for all layers",
        )
    return spec


@torch.no_grad()
def add_noise(learner: Learner, share: float, seed: int) -> None:
    """Add normal noise to every trained matrix; its deviation is `share` of the matrix's own."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in learner.trained().values():
        if parameter.ndim == 2:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(parameter.std() * share * noise.to(parameter))
