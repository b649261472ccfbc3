"""Where the assistant's turns are in a rendered conversation, as character spans.

A template with {% generation %} tags says so itself. For others:

by markers    the conversation is rendered again with a marker for every content; the text between
              the markers and the contents must together be the rendered conversation. A space
              that the template writes before a content is in the span if it is in its first token
by prefixes   the conversation up to a turn, with and without the turn, must be prefixes of the
              rendered conversation (for turns that are not only their content, such as tool calls)

Where neither is exact, there is no guess: `find_spans` returns None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regraft.data.chat.records import Message

Span = tuple[int, int]
Render = Callable[[list[Message], bool], str]
"""Renders messages; True: followed by the beginning of the assistant's turn."""
_BESIDE_CONTENT = {"tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"}
"""Keys of a message that templates write beside its content."""
_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def has_tags(template: str) -> bool:
    """Whether a template marks what the assistant generates."""
    return _TAG.search(template) is not None


def render_with_tags(
    tokenizer: Any, template: str, messages: list[Message], options: Mapping[str, Any]
) -> tuple[str, list[Span]]:
    """(text, spans of the tags in it). options: arguments of the template.

    Not by `return_assistant_tokens_mask`, which uses the same spans: if one begins at a space that
    is in no token, it leaves all later ones out (transformers 5.23).
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = options.get("tools")
    rest = {key: value for key, value in options.items() if key != "tools"}
    texts, spans = render_jinja_template(
        conversations=[messages], tools=tools, chat_template=template,
        return_assistant_tokens_mask=True, **{**tokenizer.special_tokens_map, **rest},
    )  # fmt: skip
    return texts[0], spans[0]


def find_spans(text: str, messages: list[Message], render: Render) -> list[Span] | None:
    """The spans of the assistant's turns in `text`, which is `render(messages, False)`; None where
    they cannot be told exactly. A span by markers is the content, without the end of the turn."""
    if not any(_has_more(message) for message in messages):
        spans = content_spans(text, messages, render)
        if spans is not None:
            return [
                span
                for span, message in zip(spans, messages, strict=True)
                if message["role"] == "assistant"
            ]
    return _spans_by_prefixes(text, messages, render)


def content_spans(text: str, messages: Sequence[Message], render: Render) -> list[Span] | None:
    """The span of every message's content in `text`, by markers."""
    markers = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [
        {**message, "content": marker} for message, marker in zip(messages, markers, strict=True)
    ]
    pieces, rest = [], render(marked, False)
    for marker in markers:
        before, found, rest = rest.partition(marker)
        if not found or marker in rest:
            return None
        pieces.append(before)
    pieces.append(rest)
    spans, at = [], 0
    for i, message in enumerate(messages):
        content, after = message["content"], pieces[i + 1]
        if not text.startswith(pieces[i], at):
            return None
        at += len(pieces[i])
        # templates may trim a content
        for form in (content, content.lstrip(), content.rstrip(), content.strip()):
            if text.startswith(form + after, at):
                spans.append((at, at + len(form)))
                at += len(form)
                break
        else:
            return None
    return spans if at + len(pieces[-1]) == len(text) else None


def _spans_by_prefixes(text: str, messages: list[Message], render: Render) -> list[Span] | None:
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            return None
        before, after = render(messages[:i], True), render(messages[: i + 1], False)
        if not (after.startswith(before) and text.startswith(after)):
            return None
        spans.append((len(before), len(after)))
    return spans


def _has_more(message: Message) -> bool:
    """Whether a template may write more of an assistant's turn than its content."""
    return message["role"] == "assistant" and not _BESIDE_CONTENT.isdisjoint(message)
