"""Whether the haystack can make the prompts and texts of an evaluation."""

from __future__ import annotations

from contextlib import suppress

from regraft.data.generate.fit import TooShort
from regraft.errors import InputError
from regraft.evaluate.answers import drift, perplexity
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.tasks import Kit, Task

_PIECES = 50  # sentences or lines whose words are looked up


def check_words(kit: Kit, name: str) -> None:
    """Raises InputError if the tokenizer does not know the words of the haystack `name`."""
    count = min(_PIECES, kit.haystack.size or _PIECES)
    share = kit.prompter.unknown_share("".join(kit.haystack.pieces("known", count)))
    if share > 0.2:
        raise InputError(
            f"The models' tokenizer does not know {share:.0%} of the words of the haystack "
            f"{name}; give --haystack world (with --suite toy) or a text that it knows."
        )


def check_size(kit: Kit, tasks: list[Task], measures: list[str], longest: int, own: int) -> None:
    """Raises InputError if the haystack is shorter than a prompt or text of the evaluation.

    longest: tokens of the longest prompt; own: the first model's context in tokens.
    """
    if kit.haystack.size is None:
        return
    for task in tasks:
        if task.haystack:
            with suppress(TooShort):  # the task is left out at this length
                task.item(kit, longest, 0)
    lengths = {"perplexity": longest, "drift": drift.text_length(own)}
    for measure in lengths.keys() & set(measures):
        plain = Prompter(kit.prompter.tokenizer)
        perplexity.texts(plain, kit.haystack, lengths[measure], 1, kit.seed)
