"""Translation of a recipe for mergekit: each model is a folder of links to the checked files."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from regraft.adapters.folder import CONFIG as ADAPTER_CONFIG
from regraft.adapters.folder import WEIGHTS
from regraft.checkpoint.dtypes import dtype_name
from regraft.checkpoint.hf.view import link_files, link_model
from regraft.document import Where
from regraft.input_files import JsonObject
from regraft.merge.inputs.inputs import Input, Inputs
from regraft.merge.recipe.recipe import Recipe
from regraft.merge.recipe.references import ModelRef, parse_reference

# keys that mergekit does not know
_OURS = ("context", "ties", "space", "scale", "recover", "evaluate", "chat_template")
_REFERENCES = ("model", "base_model", "source", "tokenizer_source")  # keys that name a model


def mergekit_yaml(recipe: Recipe, inputs: Inputs, donor: Input, folder: Path) -> str:
    """The recipe as YAML for mergekit. folder: links to models and adapters are made there."""
    body = _translated(recipe, donor, _Views(inputs, folder))
    return yaml.dump(body, Dumper=_NoAliases, sort_keys=False)


def _translated(recipe: Recipe, donor: Input, views: _Views) -> JsonObject:
    """The recipe without our keys, with every model replaced by its view, computed in float32."""
    body = {key: value for key, value in recipe.document.value.items() if key not in _OURS}

    def spelled(value: Any, where: Where) -> Any:
        if where and where[-1] in _REFERENCES and value not in (None, "base", "union"):
            with suppress(ValueError):  # such as the kind of a token's source
                return views.reference(parse_reference(value), recipe, where)
        if isinstance(value, dict):
            return {key: spelled(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [spelled(item, (*where, i)) for i, item in enumerate(value)]
        return value

    stored = next(
        (donor.info(n).dtype for n, role in donor.role_of.items() if role.kind == "projection"),
        torch.float32,
    )
    out_dtype = recipe.out_dtype or dtype_name(stored)
    return {**spelled(body, ()), "dtype": "float32", "out_dtype": out_dtype}


class _Views:
    """A folder of links for each model and adapter of a recipe, so that mergekit reads only the
    files that were checked. The folders' names sort in the order of the recipe, base first."""

    def __init__(self, inputs: Inputs, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._folders: dict[str, Path] = {}
        self._references: dict[ModelRef, JsonObject] = {}
        for one in inputs:
            model, adapter = one.checkpoint.name, one.adapter
            if model not in self._folders:
                self._folders[model] = folder / f"model-{len(self._folders):03}"
                link_model(one.checkpoint, self._folders[model])
            reference = self._plain(model)
            if adapter is not None:
                view = self._folders.get(adapter.name, folder / f"adapter-{len(self._folders):03}")
                if adapter.name not in self._folders:
                    link_files([adapter.folder / ADAPTER_CONFIG, adapter.folder / WEIGHTS], view)
                    self._folders[adapter.name] = view
                reference["lora"] = {"path": str(view)}
            self._references[one.ref] = reference

    def reference(self, ref: ModelRef, recipe: Recipe, where: Where) -> JsonObject:
        """The model in mergekit's mapping form. Raises InputError where it is no input."""
        if ref in self._references:
            return self._references[ref]
        if ref.adapter is None and ref.model in self._folders:
            return self._plain(ref.model)
        raise recipe.error(where, f"{ref} is not one of the models that are merged; name one.")

    def _plain(self, model: str) -> JsonObject:
        return {"model": {"path": str(self._folders[model])}}


class _NoAliases(yaml.SafeDumper):
    """Writes values that occur twice in full, instead of as YAML anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
