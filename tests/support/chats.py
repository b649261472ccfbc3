"""Chat templates of the published forms, and tokenizers with them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from evaluated import text_tokenizer

from regraft.data.toy_language import write_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
TAGGED_TO_THE_END = TAGGED.replace(
    "{{ m.content }}{% endgeneration %}", "{{ m.content }}<|im_end|>\n{% endgeneration %}"
).replace("{% endif %}<|im_end|>\n", "<|im_end|>\n{% endif %}")


def tokenizer_with(template: str | None) -> Any:
    """A byte-level BPE with the special tokens of these templates."""
    tokenizer = text_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|user|>", "<|tool|>"]}
    )
    tokenizer.chat_template = template
    return tokenizer


def words_tokenizer(template: str) -> Any:
    """The toys' tokenizer, whose tokens are words without the spaces between them."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer
