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

    suites       names of suites, tasks and measures
    lengths      of the prompts in tokens, answer included; empty: from the models' contexts
    items        items of each task at each length
    questions_per_text  how many of them are asked about the same text, where a task can
    haystack     'grammar', 'code', 'world', or the path of a text file or of a folder of them
    qa           question files (SQuAD or HotpotQA): the first for qa_1, the second for qa_2
    needles      needles that a question of the needle task asks for
    decoys       needles with similar keys beside them
    depths       number of depths in the grid of the needle task
    sigmoid      whether these depths are closer together at both ends, instead of evenly spaced
    scoring      'teacher', 'generate', or 'auto' for each task's own
    twins        whether every item is also answered without its evidence
    chat         whether prompts are in the tokenizer's chat template
    texts        number of plain texts for perplexity, and at least as many for drift
    batch        tokens in a batch; None: 32768 on a GPU, 2048 on a CPU (16384 to generate)
    limit        items of each task of lm-eval; None: all
    adapters     adapters whose extraction fidelity is measured
    grafts       grafts that are evaluated beside or instead of the model named graft
    judge        URL of the judge of free answers; None: there is none
    judge_model  name of the judge's model
    endpoint     URL of an API whose model is evaluated, too; None: there is none
    endpoint_model      the model's name there, or 'NAME=MODEL' to name it in the report
    endpoint_requests   requests under way at once
    endpoint_timeout    seconds for one reply
    tokenizer    folder or Hub id of the endpoint's tokenizer; None: the first local model's
    seed         of items, haystacks and texts
    """

    suites: tuple[str, ...] = ("needle", "perplexity", "drift")
    lengths: tuple[int, ...] = ()
    items: int = 50
    questions_per_text: int = 1
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
    endpoint: str | None = None
    endpoint_model: str | None = None
    endpoint_requests: int = 8
    endpoint_timeout: float = 600.0
    tokenizer: str | None = None
    seed: int = 0

    def validate(self) -> None:
        """Raises InputError for a value that no evaluation can use."""
        for name, least in (
            ("items", 1), ("questions_per_text", 1), ("needles", 1), ("decoys", 0), ("depths", 1),
            ("texts", 1), ("batch", 1), ("limit", 1), ("endpoint_requests", 1),
            ("endpoint_timeout", 1),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and not value >= least:
                option = name.replace("_", "-")
                raise InputError(f"--{option} {value} is too few; give {least} or more.")
        if self.scoring not in ("auto", "teacher", "generate"):
            raise InputError(f"--scoring '{self.scoring}' is not auto, teacher or generate.")
