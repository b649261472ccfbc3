"""A folder of code as one text: its files one after another, each after a line with its name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_CODE = """
.py .pyi .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .scala .swift .m .mm .js .jsx .ts
.tsx .vue .rb .php .pl .pm .lua .r .jl .hs .ml .mli .clj .ex .exs .erl .cs .fs .vb .dart .sh .bash
.zsh .fish .ps1 .sql .proto .thrift .cmake .mk .toml .cfg .ini .yaml .yml .md .rst .txt .tex .html
.css .scss .j2 .zig .nim .asm .s .f .f90 .f95
"""
_ENDINGS = frozenset(_CODE.split())
_NAMES = frozenset({"Makefile", "Dockerfile", "README", "LICENSE", "CMakeLists.txt"})
_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages"})
_LARGEST = 1_000_000  # bytes of a file; larger ones are generated or data
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+\(?([\w, \t]*)|"
                     r"import[ \t]+([\w., \t]+))", re.MULTILINE)  # fmt: skip


def repository_files(folder: Path) -> list[str]:
    """Names of the files of code, relative to `folder` and sorted. Hidden folders, installed
    packages and files of more than 1 MB are left out."""
    result = []
    for where, names, files in os.walk(folder):
        names[:] = [n for n in names if not n.startswith(".") and n not in _SKIPPED]
        for name in files:
            path = Path(where) / name
            if not (path.suffix.lower() in _ENDINGS or name in _NAMES):
                continue
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST:
                result.append(str(path.relative_to(folder)))
    return sorted(result)


def heading(name: str) -> str:
    """The line before a file in the text of a repository."""
    return f"===== {name} =====\n"


def in_order_of_imports(files: Sequence[tuple[str, str]]) -> list[str]:
    """Names of (name, text) pairs so that a Python module comes after those that it imports, as far
    as imports have no cycle; everything else stays in its order."""
    modules = {_module(name): name for name, _ in files if name.endswith(".py")}
    texts = dict(files)
    result: dict[str, None] = {}
    for first in texts:
        stack = [(first, _imported(first, texts[first], modules))]
        seen = {first}
        while stack:
            name, imports = stack[-1]
            following = next((one for one in imports if one not in seen and one not in result), "")
            if following:
                seen.add(following)
                stack.append((following, _imported(following, texts[following], modules)))
            else:
                result[name] = None
                stack.pop()
    return list(result)


def _module(name: str) -> str:
    parts = name.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, text: str, modules: dict[str, str]) -> Iterator[str]:
    """Files of the repository that a file imports."""
    if not name.endswith(".py"):
        return
    package = name.split("/")[:-1]
    for match in _IMPORT.finditer(text):
        start, names, plain = match.groups()
        if plain:
            targets = [word.split(" as ")[0].strip() for word in plain.split(",")]
        else:
            dots = len(start) - len(start.lstrip("."))
            above = package[: len(package) - dots + 1] if dots else []
            base = ".".join([*above, *filter(None, [start.lstrip(".")])])
            inner = [word.split(" as ")[0].strip() for word in names.split(",")]
            targets = [*(f"{base}.{word}" if base else word for word in inner if word), base]
        for target in targets:
            for prefix in ("", "src."):  # packages are often in a folder of that name
                if f"{prefix}{target}" in modules:
                    yield modules[f"{prefix}{target}"]
                    break
