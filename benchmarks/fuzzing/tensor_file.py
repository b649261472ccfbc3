"""Damage to a safetensors file: its header, its data, or its list of tensors."""

from __future__ import annotations

import json
import random
from typing import Any

from fuzzing.json_edits import edit_json


def damage_tensor_file(data: bytes, rng: random.Random) -> tuple[bytes, str]:
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
        text, description = edit_json(header, rng)
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
        return _with_other_tensors(header, body, name, kind, rng)
    raw = json.dumps(header).encode()
    description = f"{name}: {kind} {entry['dtype']} {entry['shape']}"
    return len(raw).to_bytes(8, "little") + raw + body, description


def _with_other_tensors(
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
