"""The gate of tokenizers: built by transformers from a model's tokenizer files and nothing else.

The files are linked into a folder of their own, `auto_map` taken out of their settings, so no code
of a repository is run, asked for or even within reach. Whatever transformers and the tokenizers
library raise, panics of Rust included, becomes one sentence that names the file.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.checkpoint.config import explained, without_code
from regraft.errors import CheckpointError
from regraft.input_files import read_json_object

if TYPE_CHECKING:
    from regraft.checkpoint.read.source import Checkpoint

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
_SETTINGS = ("tokenizer_config.json", "config.json")
_REMEDY = "download the model again or put another model's tokenizer files there"


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint. Raises CheckpointError where it has none or a broken one."""
    from transformers import AutoTokenizer

    paths = tokenizer_paths(checkpoint)
    if not paths:
        raise CheckpointError(
            f"{checkpoint.name} has no tokenizer; put its files (tokenizer.json, "
            "tokenizer_config.json) beside the model."
        )
    folder = tempfile.TemporaryDirectory(prefix="regraft-tokenizer-", ignore_cleanup_errors=True)
    try:
        link_tokenizer(paths, checkpoint.config, Path(folder.name))
        _check_core(paths)
        others = ", ".join(name for name in sorted(paths) if name != "tokenizer.json")
        with explained(f"The tokenizer of {checkpoint.name} cannot be built from {others or 'it'}",
                       _REMEDY):  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(
                folder.name, trust_remote_code=False, local_files_only=True
            )
            # what is wrong with some settings shows only when they are used
            tokenizer.get_vocab()
            tokenizer.decode(tokenizer("a b")["input_ids"], skip_special_tokens=True)
            tokenizer.name_or_path = checkpoint.name
    except BaseException:
        folder.cleanup()
        raise
    # tokenizers in Python copy their vocabulary from there when they are saved
    weakref.finalize(tokenizer, folder.cleanup)
    return tokenizer


def tokenizer_paths(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name -> local path of the files that a tokenizer is built from."""
    paths = {}
    for name in checkpoint.other_files():
        if any(fnmatch(name, pattern) for pattern in TOKENIZER_FILES):
            path = checkpoint.file(name)
            if path is not None:
                paths[name] = path
    return paths


def link_tokenizer(paths: dict[str, Path], config: dict[str, Any], folder: Path) -> None:
    """Link the files, and write settings and config.json without what names code or other files."""
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

    with explained(f"{path} is refused by the tokenizers library", _REMEDY):
        Tokenizer.from_file(str(path))
