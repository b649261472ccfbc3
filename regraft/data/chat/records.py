"""A record of a data set as a conversation: messages with the roles of a chat template.

messages        [{"role": "user", "content": "..."}, ...], content a string or text parts
conversations   ShareGPT's [{"from": "human", "value": "..."}, ...]
prompt          with `response` or `completion`: one question and its answer

Other keys of a message, such as `tool_calls`, reach the template as they are. A record may have
`system`, the text of a first message, and `tools`, a list of descriptions or its JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from regraft.errors import InputError
from regraft.input_files import parse_json

ROLES = ("system", "user", "assistant", "tool")
_ALIASES = {"human": "user", "gpt": "assistant", "function": "tool", "observation": "tool"}
_LISTS = ("messages", "conversations")
_ANSWERS = ("response", "completion")
COLUMNS = (*_LISTS, "prompt", *_ANSWERS, "system", "tools")
"""Keys of a record that are read."""

Message = dict[str, Any]
"""role, content (a string) and whatever else the template may use."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and descriptions of the tools they may use. where: the record's place, for
    messages of errors."""

    messages: list[Message]
    where: str
    tools: list[Any] | None = None

    def answered(self) -> Conversation:
        """The conversation up to its last assistant's turn; without messages if it has none."""
        last = max((i for i, m in enumerate(self.messages) if m["role"] == "assistant"), default=-1)
        return replace(self, messages=self.messages[: last + 1])


def read_conversation(record: Any, where: str, field: str | None = None) -> Conversation:
    """The conversation of a record. field: the key of its messages; None: the usual ones.

    Raises InputError, with `where`, for a record that is none, unknown roles, contents that are not
    text, and a tool's turn at the beginning.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with a conversation.")
    record = {key: value for key, value in record.items() if value is not None}
    key = next((key for key in ([field] if field else _LISTS) if key in record), None)
    answer = next((key for key in _ANSWERS if key in record), None)
    if key is not None:
        messages = record[key]
        if not isinstance(messages, list):
            raise InputError(f"{where}: '{key}' is not a list of messages.")
        result = [_message(message, where, i) for i, message in enumerate(messages, 1)]
    elif field is None and "prompt" in record and answer is not None:
        pair = {"user": record["prompt"], "assistant": record[answer]}
        result = [
            _message({"role": role, "content": text}, where, i)
            for i, (role, text) in enumerate(pair.items(), 1)
        ]
    else:
        expected = (
            f"'{field}'" if field else "'messages', 'conversations', or 'prompt' and 'response'"
        )
        raise InputError(
            f"{where} has no conversation in {expected}; it has "
            f"{', '.join(sorted(record)) or 'nothing'}."
        )
    if record.get("system") and (not result or result[0]["role"] != "system"):
        result.insert(0, _message({"role": "system", "content": record["system"]}, where, 0))
    if next((m["role"] for m in result if m["role"] != "system"), None) == "tool":
        raise InputError(
            f"{where} begins with a tool's turn, the result of a call that is not there; remove "
            "this turn, or the record."
        )
    return Conversation(result, where, _tools(record.get("tools"), where))


def _message(message: Any, where: str, number: int) -> Message:
    place = f"{where}, message {number}"
    if not isinstance(message, dict):
        raise InputError(f"{place} is not an object with a role and a content.")
    values = {key: value for key, value in message.items() if value is not None}
    name = values.pop("role", None) or values.pop("from", None)
    role = _ALIASES.get(name, name) if isinstance(name, str) else None
    if role not in ROLES:
        raise InputError(
            f"{place} has the role {name!r}; the roles are {', '.join(ROLES)} (and ShareGPT's "
            f"{', '.join(_ALIASES)})."
        )
    content = values.pop("content", values.pop("value", None))
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    if content is None and values.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise InputError(f"{place} has no text as its content.")
    return {"role": role, "content": content, **values}


def _part(part: Any, place: str) -> str:
    text = (
        part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
    )
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise InputError(f"{place} has a part of the type {kind!r}; only parts of text are read.")
    return text


def _tools(value: Any, where: str) -> list[Any] | None:
    if isinstance(value, str) and value.strip():
        value = parse_json(value, f"'tools' of {where}", remedy="correct or remove it")
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InputError(f"{where}: 'tools' is not a list of descriptions of tools.")
    return value
