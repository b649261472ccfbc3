"""A question in the model's chat template."""

from __future__ import annotations

from typing import Any

from regraft.checkpoint.hf.chat_template import TemplateFailure, TemplateTimeout, run_template
from regraft.errors import InputError

LIMIT = 5.0
"""Seconds for one prompt. A template of a published model takes milliseconds."""


def render_chat(tokenizer: Any, question: str) -> str:
    """The question as a user's turn, followed by the beginning of the assistant's.

    Raises InputError if the template refuses it, fails, or takes longer than `LIMIT` seconds.
    """
    turns = [{"role": "user", "content": question}]
    try:
        return run_template(
            lambda: str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ),
            LIMIT,
        )
    except TemplateTimeout:
        raise InputError(
            f"The model's chat template runs for more than {LIMIT:g} s on one prompt; leave --chat "
            "out."
        ) from None
    except TemplateFailure as failure:
        raise InputError(
            f"The chat template does not accept a single question ({failure}); leave --chat out."
        ) from None
