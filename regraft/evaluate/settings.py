"""The settings of an evaluation, which result.json also holds."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.errors import InputError


@dataclass(frozen=True)
class GraftPoint:
    """A graft that is made for its evaluation alone: the recipient with an adapter at a scale.

    context: the graft's RoPE and length, as in `apply_lora`.
    """

    name: str
    adapter: str
    scale: float = 1.0
    context: str | None = None


@dataclass(frozen=True)
class Settings:
    """What an evaluation measures, and on how many items.

    lengths: in tokens, answer included. items: for each cell. texts: for perplexity and drift.
    batch: in tokens, by default 2048 on a CPU, where more is slower, and 32768 on a GPU. limit: of
    lm-eval's items. adapters: for extraction fidelity. grafts: evaluated beside or instead of the
    model named graft. judge (a URL) and judge_model: for verdicts
    on free answers.
    """

    suites: tuple[str, ...] = ("needle", "perplexity", "drift")
    lengths: tuple[int, ...] = ()
    items: int = 50
    haystack: str = "grammar"
    qa: tuple[str, ...] = ()
    needles: int = 1
    decoys: int = 0
    depths: int = 5
    sigmoid: bool = False
    scoring: str = "auto"
    twins: bool = True
    chat: bool = False
    texts: int = 8
    batch: int | None = None
    limit: int | None = None
    adapters: tuple[str, ...] = ()
    grafts: tuple[GraftPoint, ...] = ()
    judge: str | None = None
    judge_model: str | None = None
    seed: int = 0

    def validate(self) -> None:
        """Raises InputError for a value that no evaluation can use."""
        for name, least in (
            ("items", 1), ("needles", 1), ("decoys", 0), ("depths", 1), ("texts", 1), ("batch", 1),
            ("limit", 1),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"--{name} {value} is too few; give {least} or more.")
        if self.scoring not in ("auto", "teacher", "generate"):
            raise InputError(f"--scoring '{self.scoring}' is not auto, teacher or generate.")
