"""adapter_config.json, read with strict types, and which modules PEFT takes its names for.

A value of another type is refused, because PEFT and others take the string "false" for true and
`true` for 1. `contradictions` describes where the config and the stored factors disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.errors import CheckpointError, InputError, short_repr
from regraft.records import read_record

# PEFT switches that change what B A means, and the values at which they do nothing.
_INACTIVE: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
_LAYER = re.compile(r"\d+")
# Initialisations that change the base to W - s B0 A0, so that B A is no change of W.
_SHIFTS_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of a LoRA that decide what its factors change; PEFT's names and defaults."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool | None = False
    fan_in_fan_out: bool | None = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool | None = False
    init_lora_weights: bool | str | None = True
    # Switches of which only the inactive value is read, see `_INACTIVE`.
    use_dora: Any = None
    bias: Any = None
    lora_bias: Any = None
    layer_replication: Any = None
    target_parameters: Any = None
    alora_invocation_tokens: Any = None
    use_qalora: Any = None
    trainable_token_indices: Any = None
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    velora_config: Any = None
    monteclora_config: Any = None


@dataclass(frozen=True)
class Pattern:
    """rank_pattern or alpha_pattern: the first key that matches the end of a name decides.

    Compiled once: the hundreds of names of a large model overflow the cache of `re`.
    """

    entries: list[tuple[re.Pattern[str], float]] = field(default_factory=list)

    def get(self, module: str, default: float) -> float:
        """The value for a module, `default` where no key matches."""
        for expression, value in self.entries:
            if expression.match(module):
                return value
        return default


def read_config(path: Path, name: str) -> AdapterConfig:
    """The config of the adapter called `name`.

    Raises CheckpointError for what is no config, InputError for adapters that change more than
    W + s B A.
    """
    config = read_record(path, AdapterConfig, "copy the adapter again")
    if config.peft_type != "LORA":
        raise InputError(
            f"{name} is a {config.peft_type or 'nameless'} adapter and regraft applies LoRA; "
            "convert it with peft.tuners.lora.conversion.convert_to_lora."
        )
    for key, inactive in _INACTIVE.items():
        if (value := getattr(config, key)) is not None and value not in inactive:
            raise InputError(
                f"{name} uses {key}={value!r}, which changes more than W + s B A; merge it with "
                "PEFT instead."
            )
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_SHIFTS_BASE):
        raise InputError(
            f"{name} was trained with init_lora_weights={start!r}, which took its first factors "
            "out of the base; save it with PEFT's path_initial_model_for_weight_conversion."
        )
    for key in ("target_modules", "exclude_modules"):
        if isinstance(expression := getattr(config, key), str):
            _compile(expression, path, key)
    return config


def read_pattern(values: Mapping[str, float] | None, path: Path, key: str) -> Pattern:
    """The pattern of a config. Raises CheckpointError for a key that is no regular expression."""
    return Pattern(
        [
            (_compile(rf"(.*\.)?({name})$", path, key), value)
            for name, value in (values or {}).items()
        ]
    )


def _compile(expression: str, path: Path, key: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: {key} holds '{expression[:60]}', which is no regular expression ({error}); "
            "copy the adapter again."
        ) from None


def contradictions(config: AdapterConfig, modules: Iterable[str]) -> list[str]:
    """Phrases on what the config and the stored factors disagree about.

    These are factors that PEFT would not load (their modules are no targets, excluded, or in layers
    that are left out) and names in target_modules without factors. modules: those with factors.
    """
    modules = list(modules)
    texts = []
    targets = config.target_modules
    empty = [
        target
        for target in (targets if isinstance(targets, list) else [])
        if not any(_named([target], module) for module in modules)
    ]
    if empty:
        texts.append(
            f"its target_modules name {', '.join(map(short_repr, empty[:3]))}"
            f"{f' and {len(empty) - 3} more' if len(empty) > 3 else ''}, for which it holds no "
            "factors: nothing changes there"
        )
    untargeted = [module for module in modules if not is_target(config, module)]
    if config.ensure_weight_tying:  # the tied twin of a target has factors and is no target
        untargeted = [module for module in untargeted if re.search(r"\.\d+\.", module)]
    if not untargeted:
        return texts
    settings = [
        key
        for key in ("target_modules", "exclude_modules", "layers_to_transform")
        if getattr(config, key) not in (None, [])
    ]
    return [
        *texts,
        f"it holds factors of {len(untargeted)} modules, '{untargeted[0]}' first, that its "
        f"{', '.join(settings)} leave out: PEFT ignores them, regraft applies them",
    ]


def missing_factors(
    config: AdapterConfig, modules: Iterable[str], of_model: Iterable[str]
) -> list[str]:
    """A phrase on targets without factors whose kind has some, such as q_proj in one layer only.

    modules: those with factors; of_model: all modules of the model.
    """
    stored = set(modules)
    kinds = {_LAYER.sub("#", module) for module in stored}
    missing = [
        module
        for module in of_model
        if module not in stored and _LAYER.sub("#", module) in kinds and is_target(config, module)
    ]
    if not missing:
        return []
    return [
        f"it holds no factors of {len(missing)} modules, '{missing[0]}' first, that its "
        "target_modules name: nothing changes there"
    ]


def is_target(config: AdapterConfig, module: str) -> bool:
    """Whether PEFT gives the module of this name factors.

    As PEFT's `check_target_module_exists`, whose import takes two seconds.
    """
    if _named(config.exclude_modules, module):
        return False
    targets = config.target_modules
    if targets is None:
        return True  # PEFT takes its own list for the architecture
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or re.fullmatch(targets, module) is not None
    if module in targets:
        return True
    if not _named(targets, module):
        return False
    layers = config.layers_to_transform
    if layers is None or layers == []:
        return True
    return _layer(config, module) in ([layers] if isinstance(layers, int) else layers)


def _named(names: str | list[str] | None, module: str) -> bool:
    """Whether names match a module: a string is a regular expression, a list has ends of names."""
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or [])


def _layer(config: AdapterConfig, module: str) -> int | None:
    """The number of the module's layer by PEFT's rule."""
    patterns = config.layers_pattern or []
    expressions = [
        rf"(?:^|.*?\.){pattern}\.(\d+)\."
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    ]
    for expression in expressions or [r".*?\.[^.]*\.(\d+)\."]:
        if match := re.match(expression, module):
            return int(match[1])
    return None
