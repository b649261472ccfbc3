"""The short fine-tune after a graft, until the NLL of short text is that of the ungrafted model.

The teacher is the derivative before the graft, with its own RoPE. Drift is the NLL of the model
minus that of the teacher on held-out short documents. Distillation adds KL(teacher || model) to the
loss of short rows (Hinton et al., arXiv 1503.02531), as far as the teacher's own context reaches;
the loss of long rows does not change. Both need no long text; `selection` guards that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from regraft import progress
from regraft.checkpoint.read.context import checkpoint_context
from regraft.checkpoint.read.source import Checkpoint
from regraft.data.batch import IGNORED, Row
from regraft.errors import InputError, RegraftError
from regraft.parallel.shards import Part
from regraft.rope import ContextSpec
from regraft.train.contexts import rotary_length
from regraft.train.corpus import Corpus
from regraft.train.recipe.recipe import Recipe
from regraft.train.record import DriftRecord, ValidationRecord
from regraft.train.run_state import RunState
from regraft.train.selection import BEST, PATIENCE, Selection, is_hopeless
from regraft.train.step.fsdp import shard
from regraft.train.step.learner import Learner, arithmetic, load
from regraft.train.step.rotary import fix_rotary, frequencies_for
from regraft.train.validation import document_rows, scores


class Recovery:
    """The teacher, with which a model is compared on `rows`. teacher: None for a recovery without
    one, whose stages run to their end. states: folder of the training states. selection: None
    where every weights may be exported."""

    def __init__(
        self, teacher: Learner | None, rows: list[Row], corpus: Corpus, states: Path
    ) -> None:
        self.teacher, self._rows, self._corpus = teacher, rows, corpus
        body = corpus.recipe.body
        self.selection: Selection | None = None
        if body.watch is not None and body.recover.veto is not None:
            self.selection = Selection(body.recover.veto, states / BEST, corpus.mesh)
        self._teacher_nll = 0.0 if teacher is None else self._nll(teacher, "teacher")

    def drift(self, learner: Learner) -> float:
        """Mean NLL of held-out short text minus the teacher's, in nats a token. Collective.

        Raises RegraftError where it is not finite.
        """
        learner.eval()
        drift = self._nll(learner, "model") - self._teacher_nll
        learner.train()
        return drift

    def ends(
        self,
        run: RunState,
        learner: Learner,
        validate: Callable[[], ValidationRecord],
        *,
        watched: bool,
        last: bool,
    ) -> bool:
        """Measure the drift where it is due and judge the weights. Returns whether the recovery
        ends here; then `run.finished`. Collective.

        validate: makes the current validation. watched: it was made already; last: this is the
        stage's last step.
        """
        settings = self._corpus.recipe.body.recover
        drift = None
        if self.teacher is not None and (last or watched or run.step % settings.every == 0):
            drift = self.drift(learner)
            progress.note(f"step {run.step}: drift on short text {drift:+.4f} nats")
            run.drifts.append(DriftRecord(step=run.step, drift=drift))
        reached = drift is not None and settings.drift is not None and drift <= settings.drift
        if self.selection is None:
            run.finished = reached
        elif watched or reached:
            result = run.validations[-1] if watched else validate()
            point = self.selection.add(run, learner, drift, result)
            if is_hopeless(run.points):
                run.stopped[run.stage] = f"{PATIENCE} times in succession {point.veto}"
                progress.warn(f"The recovery ends at step {run.step}: {run.stopped[run.stage]}.")
            run.finished = run.stage in run.stopped or (reached and point.veto is None)
        return run.finished

    def distance(self, learner: Learner, part: Part, short: list[bool]) -> Tensor:
        """KL(teacher || learner) summed over the tokens of the batch's short rows, at positions
        within the teacher's context."""
        assert self.teacher is not None
        rows = torch.tensor(short, device=part["labels"].device)
        taught = part["position_ids"] < self.teacher.model.config.max_position_embeddings
        labels = part["labels"].where(rows[:, None] & taught, IGNORED)
        with torch.no_grad():
            states = self.teacher(part, states=True)
        part = {**part, "labels": labels}
        return learner(part, teacher=(self.teacher, states))

    def _nll(self, learner: Learner, name: str) -> float:
        with frequencies_for(learner, len(self._rows[0].ids)):
            nll, _, valid = scores(learner, self._rows, self._corpus.mesh)
        mean = float(nll.sum() / valid.sum())
        if not math.isfinite(mean):
            raise RegraftError(
                f"The NLL of the {name} on the held-out short text is {mean}: check its weights."
            )
        return mean


def begin_recovery(
    recipe: Recipe, learner: Learner, corpus: Corpus, context: ContextSpec, states: Path
) -> Recovery:
    """Load the teacher and score the short text with it once. Collective.

    context: the model's, in which its drift is measured. states: folder of the training states.
    Raises InputError as `check_recovery`.
    """
    settings, mesh = recipe.body.recover, corpus.mesh
    if settings.teacher is None:
        return Recovery(None, [], corpus, states)
    with Checkpoint.open(settings.teacher) as checkpoint:
        spec = _teacher_context(recipe, checkpoint, learner.model.config.vocab_size)
        teacher = load(recipe.body, checkpoint, mesh)
    longest = max(recipe.body.stages, key=lambda stage: stage.length)
    fix_rotary(teacher.model, spec, rotary_length(recipe, longest, spec))
    teacher.requires_grad_(False)
    teacher.to(arithmetic(recipe.body, mesh.device)).eval()
    shard(teacher, recipe.body, mesh)
    rows = _short_rows(recipe, corpus, spec)
    fix_rotary(learner.model, context, rotary_length(recipe, longest, context))
    return Recovery(teacher, rows, corpus, states)


def check_recovery(recipe: Recipe, corpus: Corpus, vocabulary: int) -> None:
    """Raise InputError where no short document is held out, or the teacher does not fit the model.

    vocabulary: the model's number of tokens.
    """
    settings = recipe.body.recover
    if settings.teacher is None:
        return
    short_documents(recipe, corpus)
    if recipe.body.watch is None and settings.veto is not None:
        progress.warn(
            "This recovery cannot see whether it loses the long range; give it "
            "watch: {length: .., needle: {..}}."
        )
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
    spec = checkpoint_context(teacher)
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
