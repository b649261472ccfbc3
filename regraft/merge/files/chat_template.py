"""The chat template of the output, where the recipe has a `chat_template`."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

from regraft.errors import CheckpointError
from regraft.input_files import read_json_object, read_text
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.recipe.recipe import Recipe

TEMPLATE_FILE = "chat_template.jinja"


def choose_template(recipe: Recipe, inputs: Inputs) -> str | None:
    """The recipe's chat template: its Jinja text, mergekit's template of that name, or for 'auto'
    the most common one of the inputs. None: the tokenizer's own. Raises InputError."""
    requested = recipe.body.chat_template
    if not requested:
        return None
    if requested == "auto":
        templates = Counter(text for one in inputs if (text := _own_template(one)))
        return templates.most_common(1)[0][0] if templates else None
    if "{" in requested and len(requested) >= 20:
        return requested
    known: dict[str, Path] = {}
    spec = importlib.util.find_spec("mergekit")
    if spec is not None and spec.origin:
        folder = Path(spec.origin).parent / "_data" / "chat_templates"
        known = {path.stem: path for path in folder.glob("*.jinja")}
    if requested in known:
        return known[requested].read_text(encoding="utf-8")
    choice = f"one of {', '.join(sorted(known))}" if known else "a name that mergekit, if installed"
    raise recipe.error(
        ("chat_template",), f"chat_template '{requested[:40]}' is neither Jinja text nor 'auto' "
        f"nor {choice}{'' if known else ', knows'}.",
    )  # fmt: skip


def _own_template(one: Input) -> str | None:
    path = one.checkpoint.file(TEMPLATE_FILE)
    if path is not None:
        return read_text(path, CheckpointError).strip()
    path = one.checkpoint.file("tokenizer_config.json")
    if path is None:
        return None
    template = read_json_object(path, CheckpointError).get("chat_template")
    if isinstance(template, list):  # several by name
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return template.strip() if isinstance(template, str) else None
