"""The tokenizer of a model, built by transformers; nothing else in the package builds tokenizers.

transformers gets a temporary folder with links to the tokenizer files and nothing else, without
`auto_map` in their settings, so that it finds no code of the repository to run. Whatever
transformers and the tokenizers library raise, Rust panics included, becomes one sentence that names
the file.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.checkpoint.config import explain_errors, without_code
from regraft.checkpoint.read.files import read_json
from regraft.checkpoint.read.find import find_folder
from regraft.errors import CheckpointError
from regraft.input_files import JsonObject, read_json_object

if TYPE_CHECKING:
    from regraft.checkpoint.read.source import Checkpoint

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
_SETTINGS = ("tokenizer_config.json", "config.json")
_MOST_TOKENS = 2**24
"""The tokenizers library lists every unused number below the largest, in 4 bytes each."""
_REMEDY = "download the model again or put another model's tokenizer files there"


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint. Raises CheckpointError where it has none or a broken one."""
    return _build(checkpoint.name, tokenizer_paths(checkpoint), checkpoint.config)


def open_tokenizer(location: str) -> Any:
    """The tokenizer of a folder or Hub repository, which may hold nothing else. Raises
    CheckpointError where it has none or a broken one."""
    files, _ = find_folder(location)
    paths = {name: files.path(name) for name in files.names() if _is_tokenizer_file(name)}
    config = read_json(files, "config.json") if files.has("config.json") else {}
    return _build(location, paths, config)


def _build(name: str, paths: dict[str, Path], config: JsonObject) -> Any:
    from transformers import AutoTokenizer

    if not paths:
        raise CheckpointError(
            f"{name} has no tokenizer; put its files (tokenizer.json, tokenizer_config.json) "
            "beside the model."
        )
    folder = tempfile.TemporaryDirectory(prefix="regraft-tokenizer-", ignore_cleanup_errors=True)
    try:
        link_tokenizer(paths, config, Path(folder.name))
        _check_core(paths)
        others = ", ".join(file for file in sorted(paths) if file != "tokenizer.json")
        subject = f"The tokenizer of {name} cannot be built from {others or 'it'}"
        with explain_errors(subject, _REMEDY):
            tokenizer = AutoTokenizer.from_pretrained(
                folder.name, trust_remote_code=False, local_files_only=True
            )
            # some wrong settings fail only when they are used
            tokenizer.get_vocab()
            tokenizer.decode(tokenizer("a b")["input_ids"], skip_special_tokens=True)
            tokenizer.name_or_path = name
    except BaseException:
        folder.cleanup()
        raise
    # tokenizers in Python copy their vocabulary from there when they are saved
    weakref.finalize(tokenizer, folder.cleanup)
    return tokenizer


def tokenizer_paths(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files that a tokenizer is built from: name -> local path."""
    paths = {}
    for name in checkpoint.other_files():
        if _is_tokenizer_file(name):
            path = checkpoint.file(name)
            if path is not None:
                paths[name] = path
    return paths


def _is_tokenizer_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in TOKENIZER_FILES)


def link_tokenizer(paths: dict[str, Path], config: JsonObject, folder: Path) -> None:
    """Link tokenizer files into `folder`, settings and config.json as copies that name no code.

    paths: name -> file, as `tokenizer_paths` gives them. config: the model's config.json.
    """
    for name, path in paths.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        settings = None
        if name.endswith(".json"):
            settings = read_json_object(path, CheckpointError, remedy=_REMEDY)
        if name in _SETTINGS and settings is not None:
            plain = {k: v for k, v in without_code(settings).items() if not k.endswith("_file")}
            target.write_text(json.dumps(plain), encoding="utf-8")
        else:
            target.symlink_to(path.absolute())
    (folder / "config.json").write_text(json.dumps(without_code(config)), encoding="utf-8")


def _check_core(paths: dict[str, Path]) -> None:
    """Raise CheckpointError naming tokenizer.json where the tokenizers library refuses it."""
    path = paths.get("tokenizer.json")
    if path is None:
        return
    from tokenizers import Tokenizer

    model = read_json_object(path, CheckpointError, remedy=_REMEDY).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    for token, number in vocabulary.items() if isinstance(vocabulary, dict) else ():
        if isinstance(number, int) and number >= _MOST_TOKENS:
            raise CheckpointError(
                f"{path} gives token {token[:40]!r} the number {number}, beyond any vocabulary; "
                f"{_REMEDY}."
            )
    with explain_errors(f"{path} is refused by the tokenizers library", _REMEDY):
        Tokenizer.from_file(str(path))
