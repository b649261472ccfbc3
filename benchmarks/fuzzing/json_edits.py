"""One random edit of a tree of JSON values, as text that json.dumps might not write."""

from __future__ import annotations

import json
import random
from typing import Any

DEEP = 3000  # levels of nesting; Python's JSON reader gives up at about 1000

# JSON text that json.dumps would not write.
_RAW = {
    "deep list": "[" * DEEP + "]" * DEEP,
    "200 levels": "[" * 200 + "1" + "]" * 200,
    "900 levels": '{"a":' * 900 + "1" + "}" * 900,
    "deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "long integer": "9" * 400,
    "integer beyond Python's limit": "9" * 5000,
    "1e999": "1e999",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "lone surrogate": '"\\ud800"',
    "NUL": '"a\\u0000b"',
}
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**9, 10**18, 0.0, 0.5, -0.5, 1e-300,
    1e300, "", "a", "true", "false", "0", "1", "none", "é☃", "../../etc/passwd", "/etc/passwd",
    "a\nb", "%s{}", "x" * 2000, [], [0], ["a"], [None], [[1, 2]], {}, {"a": 1}, {"": None},
    {"rope_type": "yarn"}, {"type": "linear", "factor": 2.0}, "llama3", "longrope",
    "float16", "I32",
)  # fmt: skip
_WORDS = ("rope_scaling", "model_type", "auto_map", "quantization_config",
          "text_config", "torch_dtype")  # fmt: skip


def edit_json(tree: Any, rng: random.Random) -> tuple[str, str]:
    """The tree as JSON text with one to three nodes changed."""
    box = [tree]
    descriptions, raw = [], {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key, where = _node(box, rng)
        rare = ("delete", "rename", "swap", "wrap", "add")
        kind = rng.choice(("value",) * 6 + ("raw",) * 3 + rare)
        if kind == "delete" and holder is not box:
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[rng.choice((*_WORDS, "", str(key).upper(), f"{key}x"))] = holder.pop(key)
        elif kind == "swap":
            other, other_key, _ = _node(box, rng)
            value = json.loads(json.dumps(holder[key]))
            holder[key], other[other_key] = json.loads(json.dumps(other[other_key])), value
        elif kind == "wrap":
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
        elif kind == "add" and isinstance(holder, dict):
            holder[rng.choice(_WORDS)] = rng.choice(_VALUES)
        elif kind == "raw":
            name = rng.choice(list(_RAW))
            mark = f"raw {len(raw)} {name}"
            raw[json.dumps(mark)] = _RAW[name]
            holder[key] = mark
            kind = name
        else:
            value = rng.choice(_VALUES)
            if isinstance(value, list | dict):
                value = json.loads(json.dumps(value))
            if isinstance(holder[key], int | float) and rng.random() < 0.4:
                value = rng.choice((-1, 2, 10, 1000, 10**9, 0.5)) * holder[key]
            holder[key] = value
            kind = f"= {str(value)[:24]!r}"
        descriptions.append(f"{where} {kind}")
    text = json.dumps(box[0], ensure_ascii=False)
    for mark, replacement in raw.items():
        text = text.replace(mark, replacement)
    return text, "; ".join(descriptions)


def _node(box: list[Any], rng: random.Random) -> tuple[Any, Any, str]:
    """A random place in the tree: (holder, key, its path); deeper ones as likely as upper ones."""
    holder: Any = box
    key: Any = 0
    path = ""
    while isinstance(holder[key], list | dict) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        path += f"/{key}"
        if len(path) > 200:
            break
    return holder, key, path[:80] or "/"
