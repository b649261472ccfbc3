"""A config.json as transformers reads it; nothing else in the package gives one to transformers.

No code of a repository is run, and whatever transformers raises becomes one sentence that names the
file. `regraft.checkpoint.hf.pretrained` builds models with weights from these configs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from regraft.errors import CheckpointError, RegraftError
from regraft.input_files import JsonObject

# Keys of config.json that make transformers fetch code or kernels, or read other files.
_CODE_KEYS = {
    "auto_map",
    "kernel_config",
    "fusion_config",
    "transformers_weights",
    "custom_generate",
}


def one_line(error: BaseException, length: int = 200) -> str:
    """The error as 'TypeError: its message', on one line and without a full stop at the end."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:length]}" if text else type(error).__name__


@contextmanager
def explain_errors(subject: str, remedy: str) -> Iterator[None]:
    """Turn any error of another library into a CheckpointError '{subject} (...); {remedy}.'

    Our own errors and full memory pass as they are: they have a sentence already.
    """
    try:
        yield
    except (RegraftError, MemoryError, torch.OutOfMemoryError):
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust are no Exception
        raise CheckpointError(f"{subject} ({one_line(error)}); {remedy}.") from error


@contextmanager
def name_checkpoint(name: str) -> Iterator[None]:
    """Put the name of a checkpoint before the message of a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


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
    if (key := _not_finite(raw)) is not None:
        raise CheckpointError(
            f"config.json{of} gives a number for {key!r} that is not finite; correct the config."
        )
    with explain_errors(f"transformers {transformers.__version__} refuses config.json{of}",
                   "correct the config"), quiet():  # fmt: skip
        return CONFIG_MAPPING[kind].from_dict(without_code(dict(raw)))


def _not_finite(value: Any, key: str = "") -> str | None:
    """The key of a NaN or infinity, which no output's config.json could hold."""
    if isinstance(value, float):
        return None if math.isfinite(value) else key
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(key, item) for item in value]
    keys = (_not_finite(item, str(name)) for name, item in items)
    return next((name for name in keys if name is not None), None)


def is_known(raw: Mapping[str, Any]) -> bool:
    """Whether transformers has the model type of a config.json built in."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = raw.get("model_type")
    return isinstance(kind, str) and kind in CONFIG_MAPPING


def ties_head(raw: Mapping[str, Any], where: str = "") -> bool:
    """Whether a config says that the output head is the embedding.

    That is `tie_word_embeddings`, at the top or in `text_config`; without it, the default of the
    model type in transformers.
    """
    text = raw.get("text_config")
    for level in (raw, text if isinstance(text, dict) else {}):
        if isinstance(level.get("tie_word_embeddings"), bool):
            return bool(level["tie_word_embeddings"])
    if not is_known(raw):
        return False
    return bool(getattr(load_config(raw, where), "tie_word_embeddings", False))


def architecture_of(raw: Mapping[str, Any]) -> str | None:
    """The class of the model, such as LlamaForCausalLM; None where config.json names none."""
    named = raw.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) else None


def without_code(raw: JsonObject) -> JsonObject:
    """The config without keys that fetch code, at every level.

    The attention implementation goes too: it says what the author had installed, and transformers
    downloads one whose name has a slash.
    """
    return {
        key: without_code(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if key not in _CODE_KEYS and not str(key).endswith("_implementation")
    }


def meta_model(raw: Mapping[str, Any], where: str = "") -> Any:
    """The model of a config.json on the meta device, so without weights.

    The class is the one that the config names, else the causal language model of its type.
    """
    import transformers

    architecture = architecture_of(raw)
    model_class: Any = None
    if architecture is not None and architecture.isidentifier():
        model_class = getattr(transformers, architecture, None)
    of = f" of {where}" if where else ""
    config = load_config(raw, where)
    with explain_errors(
        f"transformers {transformers.__version__} cannot build "
        f"{architecture or raw['model_type']} from config.json{of}", "correct the config",
    ), quiet(), torch.device("meta"):  # fmt: skip
        if not isinstance(model_class, type) or not hasattr(model_class, "base_model_prefix"):
            # the checkpoint's own class, or none
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model_class(config)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, reports and warnings; regraft raises what matters."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    with hide_bars():
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)


@contextmanager
def hide_bars() -> Iterator[None]:
    """Hide transformers' progress bars, which would be drawn over ours."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
