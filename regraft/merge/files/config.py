"""The output's config.json: which input it comes from, and the context it states.

The donor is base_model, or without one the first model of the recipe. Its config is written with
the context, depth, vocabulary and dtype of the output.
"""

from __future__ import annotations

import copy
import json

from regraft.checkpoint.hf.roles import has_tied_head
from regraft.errors import InputError
from regraft.input_files import JsonObject
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.inputs.match import layer_range
from regraft.merge.recipe.recipe import Recipe
from regraft.rope import ContextSpec, extend_context


def find_donor(recipe: Recipe, inputs: Inputs) -> tuple[Input, str]:
    """The input whose config the output gets, and how it was chosen."""
    if recipe.body.base_model is not None:
        return inputs[recipe.body.base_model], "base_model"
    return next(iter(inputs)), "the first model of the recipe"


def choose_context(recipe: Recipe, inputs: Inputs, donor: Input) -> tuple[ContextSpec, str]:
    """The output's RoPE and length, and how they were chosen.

    Raises InputError where the inputs differ and the recipe has no `context`.
    """
    requested = recipe.body.context
    if requested is None:
        return _common_context(recipe, inputs), "the same in all inputs"
    chosen, why = donor, ""
    if requested.source is not None:
        chosen = _input_named(recipe, inputs, requested.source)
        why = f"from {chosen}"
    changes = requested.changes()
    if changes:
        why = (f"{why}, " if why else "") + ", ".join(f"{k}={v}" for k, v in changes.items())
    try:
        return extend_context(chosen.contexts[-1], **changes), why
    except InputError as error:
        raise recipe.error(("context",), str(error)) from None


def _common_context(recipe: Recipe, inputs: Inputs) -> ContextSpec:
    distinct: list[tuple[ContextSpec, str]] = []
    for one in inputs:
        for spec in one.contexts:
            if all(spec != other for other, _ in distinct):
                distinct.append((spec, str(one)))
    if len(distinct) == 1:
        return distinct[0][0]
    listed = "; ".join(f"{name}: {spec.describe()}" for spec, name in distinct[:4])
    longest = max(distinct, key=lambda item: item[0].max_position_embeddings)[1]
    raise recipe.error(
        (), f"the inputs have different RoPE or lengths ({listed}); choose, for example by "
        f"'context: {{from: {longest}}}'.",
    )  # fmt: skip


def _input_named(recipe: Recipe, inputs: Inputs, name: str) -> Input:
    """The input of `context: {from: name}`: by full name, else by adapter, else by model."""
    if name == "base" and recipe.body.base_model is not None:
        return inputs[recipe.body.base_model]
    for spelling in ("whole", "lora", "model"):
        for one in inputs:
            if name == {"whole": str(one), "lora": one.ref.lora, "model": one.ref.model}[spelling]:
                return one
    known = ", ".join(str(one) for one in inputs)
    raise recipe.error(("context", "from"), f"'{name}' is not an input of this recipe ({known}).")


def output_config(
    recipe: Recipe,
    inputs: Inputs,
    donor: Input,
    context: ContextSpec,
    *,
    layers: int,
    vocabulary: int | None,
    dtypes: set[str],
) -> JsonObject:
    """The donor's config changed for the output. vocabulary: rows of the embedding, None for the
    donor's; dtypes: of the projections. Raises InputError where the config cannot hold the context.
    """
    config = copy.deepcopy(donor.checkpoint.config)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if layers != text.get("num_hidden_layers"):
        text["num_hidden_layers"] = layers
    if vocabulary is not None:
        text["vocab_size"] = vocabulary
    if isinstance(text.get("layer_types"), list):
        text["layer_types"] = [
            inputs[part.sources[0].ref].checkpoint.config["layer_types"][index]
            for part in recipe.slices
            for index in range(*layer_range(recipe, inputs, part.sources[0]))
        ]
    if len(dtypes) == 1:
        keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
        config.update(dict.fromkeys(keys, next(iter(dtypes))))
    if not donor.checkpoint.tied and has_tied_head(donor.checkpoint.config):
        config["tie_word_embeddings"] = False
    try:
        return context.write_into(config)
    except InputError as error:
        raise recipe.error(("context",), str(error)) from None


def config_bytes(config: JsonObject) -> bytes:
    """A config as the text of its file."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
