"""The training loop: stages of growing context, by full fine-tune, LoRA or recovery.

A step is: rows for every process, forward and backward (`gradients`), one optimizer step with
clipped gradients. At the start of a stage its RoPE frequencies are set, and it is verified that the
model uses them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.errors import RegraftError
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.train import state
from regraft.train.contexts import rotary_length
from regraft.train.corpus import Corpus, StageRows
from regraft.train.estimate.plan import decide_keep_attention
from regraft.train.estimate.throughput import Throughput, peak_memory
from regraft.train.gradients import backward
from regraft.train.output.log import RunLog
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.stages import Stage
from regraft.train.record import AbandonedAttempt, StepRecord, ValidationRecord
from regraft.train.recovery import Recovery
from regraft.train.run_state import RunState
from regraft.train.step import optimizers as optim
from regraft.train.step.learner import Learner, arithmetic
from regraft.train.step.rotary import set_rotary, wavelengths
from regraft.train.validation import Validation, reason_to_stop
from regraft.units import format_bytes, format_tokens

FIRST = "first"
"""Folder in `states` for the state at the start of a stage that may be repeated."""


class Loop:
    """Trains the stages of a run.

    contexts: for each stage the RoPE of every attempt, in order. folder: of the logs. states:
    folder of the training states. tokenizer: for validation. on_save: called with the step after
    each state is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        learner: Learner,
        corpus: Corpus,
        contexts: list[list[ContextSpec]],
        folder: Path,
        states: Path,
        tokenizer: Any,
        on_save: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.recipe, self.learner, self.corpus = recipe, learner, corpus
        self.mesh: Mesh = corpus.mesh
        self._attempts, self.folder, self.states = contexts, folder, states
        self.tokenizer, self._on_save = tokenizer, on_save
        self.state = RunState()
        self.optimizers = optim.make(learner.trained(), recipe.body.optimizer)
        self.recovery: Recovery | None = None
        self.throughput = Throughput(learner, recipe.body, self.mesh)
        self.processes = self.mesh.describe()
        self._keep_attention = decide_keep_attention(recipe, learner, self.mesh)
        self._log: RunLog | None = None

    @property
    def contexts(self) -> list[ContextSpec]:
        """The RoPE of each stage, at its last attempt."""
        abandoned = [attempt.stage - 1 for attempt in self.state.abandoned]
        return [attempts[abandoned.count(i)] for i, attempts in enumerate(self._attempts)]

    def run(self) -> RunState:
        """Train, starting from the newest state in `states` if there is one."""
        newest = state.latest(self.states)
        if newest is not None:
            self.state, digests = state.load(newest, self.learner, self.optimizers, self.mesh)
            self.corpus.check_same(digests)
            self._mark_saved()
            progress.note(f"Continuing after step {self.state.step}.")
        if self.mesh.rank == 0:
            self._log = RunLog(
                self.folder, self.states, self.recipe.body,
                steps=self.state.step, validations=self.state.validation_lines,
            )  # fmt: skip
        stages = self.recipe.body.stages
        flops = [self.recipe.steps(stage) * self._step_flops(stage) for stage in stages]
        try:
            with progress.bar("training", total=sum(flops)) as bar:
                bar.skip(sum(flops[: self.state.stage]))
                if self.state.stage < len(stages):
                    bar.skip(self.state.stage_step * self._step_flops(stages[self.state.stage]))
                while self.state.stage < len(stages):
                    if not self._train_stage(bar):
                        continue
                    done = self.state.finished
                    self.state.stage = len(stages) if done else self.state.stage + 1
                    self.state.stage_step, self.state.counts, self.state.validations = 0, {}, []
            self._save(self.states)
            if self.recovery is not None and self.recovery.selection is not None:
                self.recovery.selection.restore(self.state, self.learner)
        finally:
            if self._log is not None:
                self._log.close()
        return self.state

    def _step_flops(self, stage: Stage) -> float:
        """FLOPs of one step of the stage, from which the remaining time is estimated."""
        return stage.batch * self.throughput.document_flops(self.recipe.window(stage))

    def _train_stage(self, bar: progress.Bar) -> bool:
        """Train the current stage to its end. False where it must be repeated with another
        theta."""
        run, body = self.state, self.recipe.body
        stage, number = body.stages[run.stage], run.stage + 1
        self._set_context(stage)
        self.learner.keep_attention = self._keep_attention[run.stage]
        rows = self.corpus.stage(run.stage)
        dtype = arithmetic(body, self.mesh.device)
        self.processes = self.mesh.describe(self.learner.model, rows.window, dtype)
        progress.note(f"stage {number}: {self.processes}")
        if stage.fallback and run.stage_step == 0 and run.attempt == 0:
            self._save(self.states / FIRST)
        if run.counts:
            rows.mixture.counts = dict(run.counts)
        validation = None
        if body.watch is not None:
            length = self.recipe.watch_length(stage)
            validation = Validation(self.corpus, body.watch, length, self.tokenizer)
            if run.stage_step == 0:
                self._validate(validation)
        steps = self.recipe.steps(stage)
        if run.step == 0 and self._recovery_ends(validation, watched=bool(validation), last=True):
            return True
        while run.stage_step < steps:
            self._step(rows, steps, bar)
            last = run.stage_step == steps
            watched = validation and (last or run.stage_step % validation.settings.every == 0)
            if validation and watched:
                self._validate(validation)
            if self._recovery_ends(validation, watched=bool(watched), last=last):
                return True
            if validation and watched and (reason := self._reason_to_stop(validation)):
                if run.attempt < len(stage.fallback):
                    self._repeat_stage(reason, bar)
                    return False
                run.stopped[run.stage] = reason
                progress.warn(f"Stage {number} ends at step {run.step}: {reason}")
                bar.skip((steps - run.stage_step) * self._step_flops(stage))
                return True
            if run.step % body.save_every == 0:
                self._save(self.states)
        return True

    def _set_context(self, stage: Stage) -> None:
        """Set the stage's frequencies in the model, and verify that it uses them."""
        spec = self.contexts[self.state.stage]
        length = rotary_length(self.recipe, stage, spec)
        rotary = set_rotary(self.learner, self.mesh, spec, length)
        for line in wavelengths(rotary) if self.state.stage_step == 0 else ():
            progress.note(f"stage {self.state.stage + 1}: {line}")

    def _repeat_stage(self, reason: str, bar: progress.Bar) -> None:
        """Restore the state at the start of the stage and record the abandoned attempt; the stage
        then has its next theta."""
        before, stage = self.state, self.recipe.body.stages[self.state.stage]
        theta = self.contexts[before.stage].theta
        first = state.latest(self.states / FIRST)
        assert first is not None
        self.state, _ = state.load(first, self.learner, self.optimizers, self.mesh)
        self.state.step, self.state.tokens = before.step, before.tokens
        self.state.validation_lines = before.validation_lines
        tokens = before.stage_step * stage.batch * self.recipe.window(stage)
        abandoned = AbandonedAttempt(
            stage=before.stage + 1, theta=theta, steps=before.stage_step, tokens=tokens,
            reason=reason,
        )  # fmt: skip
        self.state.abandoned = [*before.abandoned, abandoned]
        bar.skip(-before.stage_step * self._step_flops(stage))
        progress.warn(
            f"Stage {before.stage + 1} starts again at theta "
            f"{self.contexts[before.stage].theta:g} instead of {theta:g}: {reason}"
        )
        self._save(self.states)

    def _step(self, rows: StageRows, steps: int, bar: progress.Bar) -> None:
        """One optimizer step on the next rows. Raises RegraftError where it is not finite."""
        run, body = self.state, self.recipe.body
        stage = rows.stage
        began = time.perf_counter()
        # By learned steps, so that a repeated stage gets the same rows again.
        loss, valid, flops = backward(
            self.learner, rows.next(run.learned_steps), body, self.mesh, self.throughput,
            self.recovery,
        )  # fmt: skip
        norm = optim.clip_gradients(self.learner.trained().values(), body.optimizer.clip)
        self._check_finite(loss, norm, stage)
        rate = stage.rate * optim.factor(stage.schedule or body.schedule, run.stage_step, steps)
        optim.set_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens = stage.batch * rows.window
        run.step += 1
        run.stage_step += 1
        run.counts = dict(rows.mixture.counts)
        run.tokens += tokens
        seconds = time.perf_counter() - began
        mfu, memory = self.throughput.mfu(flops, seconds), peak_memory(self.mesh.device)
        bar.advance(
            self._step_flops(stage),
            f"{format_tokens(stage.length)} step {run.step}: loss {loss:.3f}, "
            f"{tokens / seconds:,.0f} tokens/s, "
            + ("" if mfu is None else f"MFU {mfu:.0%}, ")
            + format_bytes(memory.active),
        )
        if self._log is not None:
            record = StepRecord(
                step=run.step, stage=run.stage + 1, attempt=run.attempt + 1, length=stage.length,
                theta=self.contexts[run.stage].theta, tokens=run.tokens, valid=valid,
                seconds=seconds, left=bar.left, loss=loss, rate=rate, gradient=norm,
                tokens_per_second=tokens / seconds, memory=memory.active, mfu=mfu,
                reserved=memory.reserved, retries=memory.retries,
            )  # fmt: skip
            self._log.add_step(record)

    def _check_finite(self, loss: float, norm: float, stage: Stage) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        name, value = ("loss", loss) if not math.isfinite(loss) else ("gradient", norm)
        advice = (
            "lower the rate or lengthen the warm-up; --resume continues from the last saved step."
            if self.state.step
            else "nothing was learned yet, so check the model's weights."
        )
        raise RegraftError(
            f"The {name} became {value} at step {self.state.step + 1} "
            f"(stage {self.state.stage + 1}, {format_tokens(stage.length)}): {advice}"
        )

    def _validate(self, validation: Validation) -> ValidationRecord:
        score = validation.run(self.learner)
        if not all(map(math.isfinite, score.nll.values())):
            raise RegraftError(
                f"The NLL of the held-out text is not finite at step {self.state.step}: check the "
                "model's weights, or lower the rate."
            )
        result = ValidationRecord(
            step=self.state.step, stage=self.state.stage + 1, attempt=self.state.attempt + 1,
            length=validation.length, nll=score.nll, needle=score.needle,
        )  # fmt: skip
        self.state.validations.append(result)
        self.state.validation_lines += 1
        if self._log is not None:
            self._log.add_validation(result)
        bucket, nll = list(result.nll.items())[-1]
        needle = result.needle
        share = "" if needle is None else f", needles found {needle.accuracy:.0%}"
        progress.note(f"step {self.state.step}: NLL at {bucket} {nll:.3f}{share}")
        return result

    def _recovery_ends(self, validation: Validation | None, *, watched: bool, last: bool) -> bool:
        def validate() -> ValidationRecord:
            assert validation is not None
            return self._validate(validation)

        return self.recovery is not None and self.recovery.ends(
            self.state, self.learner, validate, watched=watched, last=last
        )

    def _reason_to_stop(self, validation: Validation) -> str | None:
        settings = validation.settings
        if not settings.stop:
            return None
        values = [result.nll for result in self.state.validations]
        return reason_to_stop(values, settings.tolerance)

    def _save(self, folder: Path) -> None:
        state.save(
            folder, self.state, self.corpus.digests, self.learner, self.optimizers, self.mesh
        )
        self._mark_saved()
        self._on_save(self.state.step)

    def _mark_saved(self) -> None:
        if self.recovery is not None and self.recovery.selection is not None:
            self.recovery.selection.saved(self.state)
