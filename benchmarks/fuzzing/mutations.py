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

import yaml

from fuzzing.json_edits import DEEP, edit_json
from fuzzing.tensor_file import damage_tensor_file


def mutate(path: Path, rng: random.Random) -> str:
    """Damage the file; returns a description. A hard link to another file is broken first."""
    data = path.read_bytes()
    kinds: list[tuple[Callable[[bytes, random.Random], tuple[bytes, str]], int]] = [(_bytes, 2)]
    if path.suffix == ".json":
        kinds.append((_json, 8))
    elif path.suffix == ".jsonl":
        kinds.append((_jsonl, 8))
    elif path.suffix == ".safetensors":
        kinds.append((damage_tensor_file, 8))
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
    """Replace the file by something else of the same name; returns a description."""
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
    text, description = edit_json(tree, rng)
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
    text, description = edit_json(yaml.safe_load(data), rng)
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
