"""The gate of configs: every config.json that transformers reads, it reads here.

No code of a repository is run, and whatever transformers raises becomes one sentence that names the
file. Models are built from configs in `regraft.checkpoint.hf.pretrained`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from regraft.errors import CheckpointError

# Keys of config.json that make transformers fetch code or kernels, or read other files.
_NEVER = {"auto_map", "kernel_config", "fusion_config", "transformers_weights", "custom_generate"}


def one_line(error: BaseException, length: int = 200) -> str:
    """'TypeError: what it says', in one line without its last full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:length]}" if text else type(error).__name__


@contextmanager
def explained(subject: str, remedy: str) -> Iterator[None]:
    """Raise whatever a foreign library raises as CheckpointError '{subject} (...); {remedy}.'"""
    try:
        yield
    except (CheckpointError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust are no Exception
        raise CheckpointError(f"{subject} ({one_line(error)}); {remedy}.") from error


def load_config(raw: Mapping[str, Any], where: str = "") -> Any:
    """The transformers config of a config.json, without what would run foreign code.

    Raises CheckpointError where transformers does not know the model type or refuses a value.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    of = f" of {where}" if where else ""
    kind = raw.get("model_type")
    if not kind or not isinstance(kind, str):
        raise CheckpointError(
            f"config.json{of} states no model_type; this is no transformers model."
        )
    if not is_known(raw):
        remote = " without the checkpoint's own code" if "auto_map" in raw else ""
        raise CheckpointError(
            f"transformers {transformers.__version__} does not know model_type {kind!r}"
            f"{remote}; regraft works with the architectures transformers has built in."
        )
    with explained(f"transformers {transformers.__version__} refuses config.json{of}",
                   "correct the config"), quiet():  # fmt: skip
        return CONFIG_MAPPING[kind].from_dict(without_code(dict(raw)))


def is_known(raw: Mapping[str, Any]) -> bool:
    """Whether transformers has the model type of a config.json built in."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = raw.get("model_type")
    return isinstance(kind, str) and kind in CONFIG_MAPPING


def without_code(raw: dict[str, Any]) -> dict[str, Any]:
    """The config without keys that fetch code, at every level. Which attention kernel the author
    had installed says nothing about a model, and a name with a slash is downloaded."""
    return {
        key: without_code(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if key not in _NEVER and not str(key).endswith("_implementation")
    }


def meta_model(raw: Mapping[str, Any], where: str = "") -> Any:
    """The model of a config.json on the meta device, weights neither made nor initialized."""
    import transformers

    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    model_class: Any = None
    if isinstance(architecture, str) and architecture.isidentifier():
        model_class = getattr(transformers, architecture, None)
    of = f" of {where}" if where else ""
    config = load_config(raw, where)
    with explained(
        f"transformers {transformers.__version__} cannot build "
        f"{architecture or raw['model_type']} from config.json{of}", "correct the config",
    ), quiet(), torch.device("meta"):  # fmt: skip
        if not isinstance(model_class, type) or not hasattr(model_class, "base_model_prefix"):
            # the checkpoint's own class, or none
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model_class(config)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, reports and warnings: what matters is raised or said by us."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
