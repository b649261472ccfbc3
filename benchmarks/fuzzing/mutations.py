"""Seeded damage to one file: its JSON, its safetensors header or data, lines, bytes, or itself.

`mutate(path, rng)` changes the file in place and returns a short description of what it did. The
mutations know the formats, because damage that a parser survives reaches further than random bytes.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DEEP = 3000  # levels of nesting; Python's JSON reader gives up at about 1000

# Values that stand for JSON text which json.dumps would not write.
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


def mutate(path: Path, rng: random.Random) -> str:
    """Damage the file and say how. A hard link to another file is broken first."""
    data = path.read_bytes()
    kinds: list[tuple[Callable[[bytes, random.Random], tuple[bytes, str]], int]] = [(_bytes, 2)]
    if path.suffix == ".json":
        kinds.append((_json, 8))
    elif path.suffix == ".jsonl":
        kinds.append((_jsonl, 8))
    elif path.suffix == ".safetensors":
        kinds.append((_safetensors, 8))
    elif path.suffix == ".yaml":
        kinds.append((_yaml, 8))
        kinds.append((_text, 2))
    if rng.random() < 0.06:
        return _replace_file(path, rng)
    kind = rng.choices([k for k, _ in kinds], [weight for _, weight in kinds])[0]
    changed, description = kind(data, rng)
    path.unlink()
    path.write_bytes(changed)
    return description


def _replace_file(path: Path, rng: random.Random) -> str:
    """Something that is not this file stands under its name."""
    kind = rng.choice(
        ("nothing", "folder", "FIFO", "dangling link", "link to itself", "link outside", "socket")
    )
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "link outside":
        path.symlink_to("/etc/hostname")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket is short
            made.bind(path.name)
            os.chdir(here)
    return f"replaced by {kind}"


def _bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    at = rng.randrange(len(data) + 1)
    kind = rng.choice(
        ("truncated", "empty", "flipped", "inserted", "dropped", "byte order mark", "UTF-16",
         "doubled", "NULs", "spaces", "Latin-1", "random")
    )  # fmt: skip
    if kind == "truncated":
        return data[:at], f"truncated to {at}"
    if kind == "empty":
        return b"", kind
    if kind == "flipped":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 64))):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed), kind
    if kind == "inserted":
        return data[:at] + rng.randbytes(rng.choice((1, 8, 1000))) + data[at:], f"{kind} at {at}"
    if kind == "dropped":
        return data[:at] + data[at + rng.choice((1, 8, 100)) :], f"{kind} at {at}"
    if kind == "byte order mark":
        return b"\xef\xbb\xbf" + data, kind
    if kind == "UTF-16":
        return data.decode("utf-8", "replace").encode("utf-16"), kind
    if kind == "doubled":
        return data + data, kind
    if kind == "NULs":
        return data[:at] + b"\0" * 16 + data[at + 16 :], f"{kind} at {at}"
    if kind == "spaces":
        return b" " * 1_000_000 + data, kind
    if kind == "Latin-1":
        return data[:at] + b"\xe9\xff" + data[at:], kind
    return rng.randbytes(rng.choice((1, 7, 8, 9, 100, 5000))), kind


def _json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    try:
        tree = json.loads(data)
    except ValueError:
        return _bytes(data, rng)
    text, description = _edited(tree, rng)
    return text.encode("utf-8", "surrogatepass"), description


def _jsonl(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.15:
        lines[at], description = _bytes(lines[at], rng)
    else:
        lines[at], description = _json(lines[at], rng)
    if rng.random() < 0.2:
        lines = lines[at : at + 1]
    return b"\n".join(lines) + b"\n", f"line {at + 1}: {description}"


def _yaml(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """JSON is YAML, so the edited tree is written as JSON."""
    text, description = _edited(yaml.safe_load(data), rng)
    return text.encode("utf-8", "surrogatepass"), description


def _text(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    new = rng.choice(
        ("\tkey: value", "---", "...", "- a", "? b", "&a [*a, *a]", "<<: *nothing", "!!python/none",
         "!!python/object/apply:os.system [id]", "key: !!binary abc", "%YAML 9.9", "'", '"', "{",
         "]",
         "key: 2026-99-99", "model: 0x", "a: b: c", "🙂: ☃", "[" * DEEP, "- " * DEEP,
         "? " * DEEP, "x: &a [*a]", 'name: "\\ud800"', "model: [in/base]", "scale: .nan")
    )  # fmt: skip
    if rng.random() < 0.5:
        lines.insert(at, new)
    else:
        lines[at] = new
    return "\n".join(lines).encode() + b"\n", f"line {at + 1}: {new[:40]}"


def _edited(tree: Any, rng: random.Random) -> tuple[str, str]:
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


def _safetensors(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    begin, end = entry["data_offsets"]
    kind = rng.choice(
        ("edit", "edit", "NaN", "infinity", "all NaN", "zeros", "huge", "random data", "dtype",
         "same size dtype", "shape", "rename", "remove", "add", "length", "other shape")
    )  # fmt: skip
    if kind == "edit":
        text, description = _edited(header, rng)
        raw = text.encode("utf-8", "surrogatepass")
        return len(raw).to_bytes(8, "little") + raw + body, f"header {description}"
    size = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}.get(entry["dtype"], 1)
    one = {
        "NaN": {4: b"\0\0\xc0\x7f", 2: b"\xc0\x7f"},
        "infinity": {4: b"\0\0\x80\x7f", 2: b"\x80\x7f"},
        "all NaN": {4: b"\0\0\xc0\x7f", 2: b"\xc0\x7f"}, "zeros": {},
        "huge": {4: b"\xff\xff\x7f\x7f", 2: b"\x7f\x7f"},
    }.get(kind)  # fmt: skip
    if one is not None:
        word = one.get(size, b"\0" * size)
        count = (end - begin) // size
        changed = bytearray(body)
        if kind in ("NaN", "infinity") and count:
            at = begin + rng.randrange(count) * size
            changed[at : at + size] = word
        else:
            changed[begin:end] = word * count
        return data[: 8 + length] + bytes(changed), f"{name}: {kind}"
    if kind == "random data":
        return data[: 8 + length] + body[:begin] + rng.randbytes(end - begin) + body[end:], (
            f"{name}: {kind}"
        )
    if kind == "length":
        new = rng.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**63 - 1, 2**64 - 1))
        return new.to_bytes(8, "little") + data[8:], f"header length {new}"
    if kind in ("dtype", "same size dtype"):
        codes = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3"]
        if kind == "same size dtype":
            same = {4: ["I32", "U32"], 2: ["I16", "F16", "BF16", "U16"], 8: ["I64"]}
            codes = same.get(size, ["U8"])
        entry["dtype"] = rng.choice(codes)
    elif kind == "shape":
        shape = entry["shape"]
        entry["shape"] = rng.choice((shape[::-1], [*shape, 1], [1, *shape], [end - begin], []))
    elif kind == "rename":
        others = ("lm_head.weight", f"{name}x", f"model.{name}", name.replace("0", "9"), "")
        new = rng.choice(others)
        header[new] = header.pop(name)
    elif kind in ("remove", "add", "other shape"):
        return _rebuilt(header, body, name, kind, rng)
    raw = json.dumps(header).encode()
    description = f"{name}: {kind} {entry['dtype']} {entry['shape']}"
    return len(raw).to_bytes(8, "little") + raw + body, description


def _rebuilt(
    header: dict[str, Any], body: bytes, name: str, kind: str, rng: random.Random
) -> tuple[bytes, str]:
    """A valid file with a tensor removed, added or cut to fewer rows."""
    tensors = {
        key: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for key, entry in header.items()
        if key != "__metadata__"
    }
    dtype, shape, data = tensors[name]
    if kind == "remove":
        del tensors[name]
    elif kind == "add":
        tensors[rng.choice((f"{name}.more", "model.layers.7.mlp.up_proj.weight", "extra"))] = (
            tensors[name]
        )
    elif shape and shape[0] > 1:
        rows = rng.choice((0, 1, shape[0] - 1))
        tensors[name] = (dtype, [rows, *shape[1:]], data[: len(data) // shape[0] * rows])
    new: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    out = b""
    for key, (code, size, part) in tensors.items():
        new[key] = {"dtype": code, "shape": size, "data_offsets": [len(out), len(out) + len(part)]}
        out += part
    raw = json.dumps(new).encode()
    return len(raw).to_bytes(8, "little") + raw + out, f"{name}: {kind}"
