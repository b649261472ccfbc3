"""metrics.jsonl, watch.jsonl, TensorBoard where it is installed, Weights & Biases where asked for,
and the curves at the end."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import uuid
from pathlib import Path
from typing import Any

from regraft import drawing, progress
from regraft.errors import InputError
from regraft.train.recipe.schema import Body
from regraft.units import format_tokens

METRICS, WATCH, CURVES = "metrics.jsonl", "watch.jsonl", "curves.png"


class Log:
    """A JSON line for each step, flushed as it is written. Lines after the first `lines` are cut
    off first: what they tell of will be done again."""

    def __init__(self, path: Path, lines: int) -> None:
        kept = read(path)[:lines]
        staging = path.with_name(f".{path.name}")
        staging.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(staging, path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a torn last one is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def draw(folder: Path) -> None:
    """Loss by step, and where the run was watched NLL by position and needles found."""
    steps, looks = read(folder / METRICS), read(folder / WATCH)
    if not steps:
        return
    needles = any("needle" in look for look in looks)
    columns = 1 + bool(looks) + needles
    with drawing.figure(folder / CURVES, columns, width=4.6, height=3.4) as axes:
        panels = axes if columns > 1 else [axes]
        _draw_loss(panels[0], steps)
        if looks:
            _draw_far(panels[1], looks)
        if needles:
            found = [look for look in looks if "needle" in look]
            for style, length in zip(
                drawing.styles(), sorted({look["length"] for look in found}), strict=False
            ):
                mine = [look for look in found if look["length"] == length]
                panels[2].plot(
                    [look["step"] for look in mine],
                    [look["needle"]["found"] for look in mine],
                    label=f"at {format_tokens(length)}", **style,
                )  # fmt: skip
            panels[2].set(xlabel="step", ylabel="needles found", ylim=(-0.03, 1.05))
            drawing.legend(panels[2])


def _draw_loss(axes: Any, steps: list[dict[str, Any]]) -> None:
    styles = drawing.styles()
    numbers = sorted({(line["stage"], line["attempt"]) for line in steps})
    for style, number in zip(styles, numbers, strict=False):
        mine = [line for line in steps if (line["stage"], line["attempt"]) == number]
        theta = f"{mine[0]['theta']:.3g}"
        label = f"{format_tokens(mine[0]['length'])}, theta {theta}"
        axes.plot(
            [line["step"] for line in mine], [line["loss"] for line in mine],
            color=style["color"], linestyle=style["linestyle"], linewidth=1, label=label,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss, nats a token")
    drawing.legend(axes)


def _draw_far(axes: Any, looks: list[dict[str, Any]]) -> None:
    """One line for each bucket but the nearest."""
    names = [name for look in looks for name in look["nll"] if not name.startswith("0-")]
    names = list(dict.fromkeys(names))
    names.sort(key=lambda name: tuple(map(int, name.split("-"))))
    for style, name in zip(drawing.styles(), names, strict=False):
        low, high = map(int, name.split("-"))
        axes.plot(
            [look["step"] for look in looks],
            [look["nll"].get(name, math.nan) for look in looks],
            label=f"{format_tokens(low)} to {format_tokens(high)}",
            **style,
        )
    axes.set(xlabel="step", ylabel="held-out NLL by position")
    axes.legend(fontsize=7, ncols=1 + len(names) // 6)


class Board:
    """TensorBoard where it is installed, and Weights & Biases where the recipe asks for it.

    folder: TensorBoard's. states: holds what a resumed run of Weights & Biases needs. step: what
    was logged after it will be logged again.
    """

    def __init__(self, folder: Path, states: Path, step: int, body: Body) -> None:
        self._run: Any = _wandb_run(states, body, folder.parent.name) if body.track else None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)
        except ImportError:
            self._writer = None

    def add(self, step: int, **values: float | None) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        if self._run is not None:
            self._run.log(known, step=step)
        if self._writer is not None:
            for name, value in known.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        if self._writer is not None:
            self._writer.close()


def check_tracker(body: Body) -> None:
    """Raise InputError where the recipe asks for a service whose package is not here."""
    if body.track is not None and importlib.util.find_spec(body.track) is None:
        raise InputError(
            f"track: {body.track} is not installed here; `pip install {body.track}`, or leave "
            "track out (metrics.jsonl is always written)."
        )


def keep_offline(states: Path, folder: Path, target: Path) -> None:
    """Save the runs that Weights & Biases kept to send later, and say how, before `states` goes."""
    for run in sorted((states / "wandb").glob("offline-run-*")):
        (folder / "wandb").mkdir(exist_ok=True)
        run.rename(folder / "wandb" / run.name)
        progress.note(f"To send the run: wandb sync {target / 'wandb' / run.name}")


def _wandb_run(states: Path, body: Body, name: str) -> Any:
    wandb: Any = importlib.import_module(body.track or "")
    states.mkdir(parents=True, exist_ok=True)
    kept = states / "wandb-run"
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            project="regraft", id=kept.read_text(), name=name, resume="allow", dir=str(states),
            config=body.model_dump(),
        )  # fmt: skip
    except wandb.Error as error:
        raise InputError(
            f"Weights & Biases does not take the run ({' '.join(str(error).split())[:200]}); "
            "`wandb login`, or keep it to be sent later with WANDB_MODE=offline."
        ) from None
