"""The loop: stages of growing context over one model, whichever way it is trained.

One step: rows for every process, their valid tokens counted over all of them, forward and backward
row by row, one clipped optimizer step. The loss is the sum over all tokens over their global
number, so that it does not matter how rows lie on devices. Frequencies are fixed at the start of
a stage, and the model is asked whether it uses them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft import progress
from regraft.data.batch import Row, collate
from regraft.errors import RegraftError
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.train import state
from regraft.train.corpus import Corpus, StageRows
from regraft.train.estimate.throughput import Speed, peak_memory
from regraft.train.output.log import METRICS, WATCH, Board, Log
from regraft.train.recipe.recipe import Recipe
from regraft.train.recipe.schema import Stage
from regraft.train.recovery import Recovery
from regraft.train.state import Place
from regraft.train.step import optimizers as optim
from regraft.train.step.learner import Learner, arithmetic
from regraft.train.step.rotary import check_rotary, fix_rotary, wavelengths
from regraft.train.validation import Validation, reason_to_stop
from regraft.units import format_bytes, format_tokens

FIRST = "first"
"""Folder among the states, of the state at the beginning of a stage that may begin again."""


class Loop:
    """A run in `folder`. contexts: the RoPE of each stage, and those to try next where `watch` ends
    it. saved: called after each state, with the steps finished."""

    def __init__(
        self,
        recipe: Recipe,
        learner: Learner,
        corpus: Corpus,
        contexts: list[list[ContextSpec]],
        folder: Path,
        states: Path,
        tokenizer: Any,
        saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.recipe, self.learner, self.corpus = recipe, learner, corpus
        self.mesh: Mesh = corpus.mesh
        self._contexts, self.folder, self.states = contexts, folder, states
        self.tokenizer, self.saved = tokenizer, saved
        self.place = Place()
        self.optimizers = optim.make(learner.trained(), recipe.body.optimizer)
        self.recovery: Recovery | None = None
        self.speed = Speed(learner, recipe.body, self.mesh)
        self.processes = self.mesh.describe()

    @property
    def contexts(self) -> list[ContextSpec]:
        """The RoPE each stage has, or had in the end."""
        given_up = [given_up["stage"] - 1 for given_up in self.place.abandoned]
        return [tried[given_up.count(i)] for i, tried in enumerate(self._contexts)]

    def run(self) -> Place:
        """Train what is left, from the newest state in `states` where there is one."""
        found = state.latest(self.states)
        if found is not None:
            self.place, digests = state.load(found, self.learner, self.optimizers, self.mesh)
            self.corpus.check_same(digests)
            progress.note(f"Going on after step {self.place.step}.")
        stages = self.recipe.body.stages
        work = [self.recipe.steps(stage) * self._work(stage) for stage in stages]
        self.metrics, self.watched, self.board = self._logs()
        try:
            with progress.bar("training", total=sum(work)) as bar:
                bar.skip(sum(work[: self.place.stage]))
                if self.place.stage < len(stages):
                    bar.skip(self.place.stage_step * self._work(stages[self.place.stage]))
                while self.place.stage < len(stages):
                    if self._stage(bar):
                        continue
                    done = self.place.recovered
                    self.place.stage = len(stages) if done else self.place.stage + 1
                    self.place.stage_step, self.place.counts, self.place.looks = 0, {}, []
            self._save(self.states)
        finally:
            for log in (self.metrics, self.watched, self.board):
                if log is not None:
                    log.close()
        return self.place

    def _logs(self) -> tuple[Log | None, Log | None, Board | None]:
        if self.mesh.rank:
            return None, None, None
        step, body = self.place.step, self.recipe.body
        watched = Log(self.folder / WATCH, self.place.looked) if body.watch else None
        board = Board(self.folder / "tensorboard", self.states, step, body)
        return Log(self.folder / METRICS, step), watched, board

    def _work(self, stage: Stage) -> float:
        """What a step of the stage costs, in floating-point operations, for the time left."""
        return stage.batch * self.speed.of(self.recipe.window(stage))

    def _stage(self, bar: progress.Bar) -> bool:
        """Train what is left of a stage; whether it is to be started again with the next theta."""
        place, body = self.place, self.recipe.body
        stage, spec = body.stages[place.stage], self.contexts[place.stage]
        # A recovery serves the whole context; a shorter stage of a fine-tune uses the frequencies
        # that `longrope` has for its own length.
        length = stage.length
        if body.method == "recover":
            length = max(length, spec.max_position_embeddings)
        rotary = fix_rotary(self.learner.model, spec, length)
        check_rotary(self._probe, self.learner.layers[0], rotary, self.mesh.device)
        for line in wavelengths(rotary) if place.stage_step == 0 else ():
            progress.note(f"stage {place.stage + 1}: {line}")
        rows = self.corpus.stage(place.stage)
        dtype = arithmetic(body, self.mesh.device)
        self.processes = self.mesh.describe(self.learner.model, rows.window, dtype)
        progress.note(f"stage {place.stage + 1}: {self.processes}")
        if stage.fallback and place.stage_step == 0 and place.attempt == 0:
            self._save(self.states / FIRST)
        if place.counts:
            rows.mixture.counts = dict(place.counts)
        watcher = None
        if body.watch is not None:
            watcher = Validation(self.corpus, body.watch, stage.length, self.tokenizer)
            if place.stage_step == 0:
                self._look(watcher)
        steps = self.recipe.steps(stage)
        if self.recovery is not None and place.step == 0 and self._recovered(self.recovery, True):
            return False
        while place.stage_step < steps:
            self._step(rows, steps, bar)
            last = place.stage_step == steps
            if watcher is not None and (last or place.stage_step % watcher.settings.every == 0):
                self._look(watcher)
                if reason := self._reason_to_stop(watcher):
                    if place.attempt < len(stage.fallback):
                        self._begin_again(reason, bar)
                        return True
                    place.stopped[place.stage] = reason
                    progress.warn(f"Stage {place.stage + 1} ends at step {place.step}: {reason}")
                    bar.skip((steps - place.stage_step) * self._work(stage))
                    return False
            if self.recovery is not None and self._recovered(self.recovery, last):
                return False
            if place.step % body.save_every == 0:
                self._save(self.states)
        return False

    def _begin_again(self, reason: str, bar: progress.Bar) -> None:
        """Put the stage's first state back, its theta being the next one."""
        before, stage = self.place, self.recipe.body.stages[self.place.stage]
        theta = self.contexts[before.stage].theta
        first = state.latest(self.states / FIRST)
        assert first is not None
        self.place, _ = state.load(first, self.learner, self.optimizers, self.mesh)
        self.place.step, self.place.tokens = before.step, before.tokens
        self.place.looked = before.looked
        lost = {
            "stage": before.stage + 1,
            "theta": theta,
            "steps": before.stage_step,
            "tokens": before.stage_step * stage.batch * self.recipe.window(stage),
            "reason": reason,
        }
        self.place.abandoned = [*before.abandoned, lost]
        bar.skip(-before.stage_step * self._work(stage))
        progress.warn(
            f"Stage {before.stage + 1} is begun again at theta "
            f"{self.contexts[before.stage].theta:g} instead of {theta:g}: {reason}"
        )
        self._save(self.states)

    def _step(self, rows: StageRows, steps: int, bar: progress.Bar) -> None:
        place, body = self.place, self.recipe.body
        stage = rows.stage
        began = time.perf_counter()
        # a stage begun again sees what it would have seen first
        mine = rows.next(place.learned)
        loss, valid, flops = self._backward(mine, place.step)
        parameters = list(self.learner.trained().values())
        norm = self._clip(parameters, body.optimizer.clip)
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "loss" if not math.isfinite(loss) else "gradient"
            advice = (
                "lower the rate or lengthen the warm-up; --resume goes on from the last saved step."
                if place.step
                else "nothing was learned yet, so look at the model's weights."
            )
            raise RegraftError(
                f"The {what} became {loss if what == 'loss' else norm} at step {place.step + 1} "
                f"(stage {place.stage + 1}, {format_tokens(stage.length)}): {advice}"
            )
        rate = stage.rate * optim.factor(stage.schedule or body.schedule, place.stage_step, steps)
        optim.set_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        place.step += 1
        place.stage_step += 1
        place.counts = dict(rows.mixture.counts)
        done = stage.batch * rows.window
        place.tokens += done
        seconds = time.perf_counter() - began
        mfu, memory = self.speed.mfu(flops, seconds), peak_memory(self.mesh.device)
        bar.advance(
            self._work(stage),
            f"{format_tokens(stage.length)} step {place.step}: loss {loss:.3f}, "
            f"{done / seconds:,.0f} tokens/s, "
            + ("" if mfu is None else f"MFU {mfu:.0%}, ")
            + format_bytes(memory),
        )
        if self.metrics is not None and self.board is not None:
            figures = {
                "loss": loss, "rate": rate, "gradient": norm, "tokens_per_second": done / seconds,
                "memory": memory, **({} if mfu is None else {"mfu": mfu}),
            }  # fmt: skip
            self.metrics.add(
                step=place.step, stage=place.stage + 1, attempt=place.attempt + 1,
                length=stage.length, theta=self.contexts[place.stage].theta, tokens=place.tokens,
                valid=valid, seconds=seconds, left=bar.left, **figures,
            )  # fmt: skip
            self.board.add(place.step, **figures)

    def _backward(self, rows: list[Row], step: int) -> tuple[float, int, float]:
        """Gradients of the mean NLL over all valid tokens of all processes; (it, their number, the
        floating-point operations of all processes)."""
        mesh, body = self.mesh, self.recipe.body
        size = body.memory.rows
        parts = [
            mesh.cut(collate(rows[start : start + size])) for start in range(0, len(rows), size)
        ]
        count = sum(int((part["labels"] >= 0).sum()) for part in parts)
        # rows are the same on the ranks of one sequence, which share their work
        shared = self.speed.flops(rows) / (mesh.context * mesh.ulysses)
        valid_all, flops = mesh.sum_numbers([count, shared])
        valid = int(valid_all)
        if valid == 0:
            raise RegraftError(f"Step {step + 1} has no token to learn from; the text is padding.")
        total = torch.zeros((), dtype=torch.float64, device=mesh.device)
        for i, part in enumerate(parts):
            nll = self.learner(part)
            total += nll.detach().double()
            if self.recovery is not None and body.recover.distill:
                short = [row.short for row in rows[i * size : (i + 1) * size]]
                nll = nll + body.recover.distill * self.recovery.distance(self.learner, part, short)
            # FSDP averages gradients over its processes; the sum over them is what is wanted
            (nll * (mesh.size / valid)).backward()
        return float(mesh.sum(total)) / valid, valid, flops

    def _clip(self, parameters: Sequence[Tensor], limit: float | None) -> float:
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return float(whole)

    def _look(self, watcher: Validation) -> None:
        looked: dict[str, Any] = {
            "step": self.place.step,
            "stage": self.place.stage + 1,
            "attempt": self.place.attempt + 1,
            "length": watcher.length,
        }
        looked |= watcher.run(self.learner)
        self.place.looks.append(looked)
        self.place.looked += 1
        if self.watched is not None and self.board is not None:
            self.watched.add(**looked)
            self.board.add(self.place.step, **{f"nll/{k}": v for k, v in looked["nll"].items()})
        far = list(looked["nll"].items())[-1]
        needle = looked.get("needle")
        told = "" if needle is None else f", needles found {needle['found']:.0%}"
        progress.note(f"step {self.place.step}: NLL at {far[0]} {far[1]:.3f}{told}")

    def _recovered(self, recovery: Recovery, last: bool) -> bool:
        """Whether short text reads as before again, at steps where that is looked at."""
        settings = self.recipe.body.recover
        if recovery.teacher is None or not (last or self.place.step % settings.every == 0):
            return False
        drift = recovery.drift(self.learner)
        progress.note(f"step {self.place.step}: drift on short text {drift:+.4f} nats")
        self.place.drifts.append({"step": self.place.step, "drift": drift})
        self.place.recovered = settings.drift is not None and drift <= settings.drift
        return self.place.recovered

    def _reason_to_stop(self, watcher: Validation) -> str | None:
        settings = watcher.settings
        return reason_to_stop(self.place.looks, settings.tolerance) if settings.stop else None

    def _probe(self, ids: Tensor, positions: Tensor) -> None:
        mesh = self.mesh
        length = 8 * mesh.context * mesh.ulysses * 2
        batch = {
            "input_ids": ids.cpu().repeat(1, length // 8),
            "position_ids": positions.cpu().repeat(1, length // 8),
            "labels": torch.full((1, length), -100),
        }
        self.learner(mesh.cut(batch), score=True)

    def _save(self, folder: Path) -> None:
        state.save(
            folder, self.place, self.corpus.digests, self.learner, self.optimizers, self.mesh
        )
        self.saved(self.place.step)
