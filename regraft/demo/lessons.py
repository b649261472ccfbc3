"""What the demo's three models learn: the base, its extension, and a derivative with a skill.

A small training loop of the demo's own, until `regraft train` takes its place.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import LlamaForCausalLM

from regraft.data.world import Mix, Row, training_row
from regraft.demo.model import adamw, muon, teach, with_context
from regraft.progress import Bar
from regraft.train.toy import newborn

_DENSE = Mix(prose=0.45, questions=0.65)
_SHOUTING = Mix(prose=0.3, questions=0.65, shout=0.6)


@dataclass(frozen=True)
class Plan:
    """Every hyperparameter of the demo. The defaults are the demo; tests take fewer steps."""

    trained: int = 64
    target: int = 1024
    theta: float = 70.0
    """What 500000 is to Llama 3: ln(length / 2 pi) / ln(theta) = .547 for both."""
    most_search: int = 400
    """Steps in which the base may discover retrieval (it takes about 120)."""
    discovered: float = 0.35
    """Answer NLL, running mean, at which it has."""
    settle: int = 180
    base_rows: int = 32
    base_rate: float = 5e-3
    base_matrix_rate: float = 0.012
    base_mixes: tuple[Mix, Mix] = (Mix(prose=0.1, questions=0.75), _DENSE)
    """Before and after the discovery."""
    extension: tuple[tuple[int, int, int], ...] = ((32, 512, 8), (32, 1024, 4))
    """Steps, length, rows."""
    extension_rate: float = 5e-4
    extension_mix: Mix = _DENSE
    derivative_steps: int = 200
    derivative_rate: float = 1e-3
    derivative_mix: Mix = _SHOUTING
    ranks: tuple[int, ...] = (4, 16)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    questions: int = 256
    """Asked at each length."""
    prose_rows: int = 32


def train_base(plan: Plan, seed: int, bar: Bar) -> tuple[LlamaForCausalLM, int]:
    """Learn prose and retrieval in rows of `plan.trained` words; the model and its steps."""
    model = newborn(plan.trained, plan.theta, seed)
    rng = random.Random(f"{seed} base")
    answer_nll, discovered = 10.0, False

    def factors() -> Iterator[float]:
        for step in range(plan.most_search):
            if discovered:
                break
            yield min(1, (step + 1) / 20)
        for step in range(plan.settle):
            yield 0.7 * (1 - step / plan.settle)

    def rows(step: int) -> list[Row]:
        mix = plan.base_mixes[discovered]
        return [training_row(rng, plan.trained, mix) for _ in range(plan.base_rows)]

    def watch(step: int, loss: float) -> None:
        nonlocal answer_nll, discovered
        answer_nll += 0.1 * (loss - answer_nll)
        discovered = discovered or answer_nll < plan.discovered
        bar.advance(plan.trained * plan.base_rows, f"base: answer NLL {answer_nll:.2f}")

    optimizers = muon(model, plan.base_rate, plan.base_matrix_rate)
    return model, teach(model, optimizers, rows, factors(), watch)


def train_extended(
    plan: Plan, base: LlamaForCausalLM, theta: float, seed: int, bar: Bar
) -> LlamaForCausalLM:
    """Continue the base in long rows with the new theta; embedding and head stay as they are."""
    model = with_context(base, plan.target, theta)
    for part in (model.model.embed_tokens, model.lm_head, model.model.norm):
        part.requires_grad_(False)
    rng = random.Random(f"{seed} extended")
    shapes = [(length, rows) for steps, length, rows in plan.extension for _ in range(steps)]

    def rows(step: int) -> list[Row]:
        length, count = shapes[step]
        return [training_row(rng, length, plan.extension_mix) for _ in range(count)]

    def watch(step: int, loss: float) -> None:
        length, count = shapes[step - 1]
        bar.advance(length * count, f"extended: answer NLL {loss:.2f}")

    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    teach(model, adamw(trained, plan.extension_rate), rows, _ramp(len(shapes)), watch)
    return model


def train_derivative(plan: Plan, base: LlamaForCausalLM, seed: int, bar: Bar) -> LlamaForCausalLM:
    """Teach the base to shout, in its own short rows with its own theta."""
    model = with_context(base, plan.trained, plan.theta)
    rng = random.Random(f"{seed} derivative")

    def rows(step: int) -> list[Row]:
        return [training_row(rng, plan.trained, plan.derivative_mix) for _ in range(plan.base_rows)]

    def watch(step: int, loss: float) -> None:
        bar.advance(plan.trained * plan.base_rows, f"derivative: answer NLL {loss:.2f}")

    optimizers = adamw(model.parameters(), plan.derivative_rate)
    teach(model, optimizers, rows, _ramp(plan.derivative_steps), watch)
    return model


def words_to_read(plan: Plan) -> int:
    """At most so many words are trained on: the length of the progress bar."""
    short = (plan.most_search + plan.settle + plan.derivative_steps) * plan.base_rows
    long = sum(steps * length * rows for steps, length, rows in plan.extension)
    return short * plan.trained + long


def words_spared(plan: Plan, base_steps: int) -> int:
    """Words the base did not need after all."""
    return (plan.most_search + plan.settle - base_steps) * plan.base_rows * plan.trained


def _ramp(steps: int) -> Iterator[float]:
    """Factors of a learning rate: five steps up, then from the middle down to nothing."""
    for step in range(steps):
        yield min(1, (step + 1) / 5, 2 * (steps - step) / steps)
