"""Python blocks run on toys, YAML blocks are accepted, servers get the flags that cards print."""

from __future__ import annotations

import re
import shlex
from types import SimpleNamespace

import pytest
from printed import blocks
from stand_ins import MODELS, RECIPES

import regraft
from regraft.adapters.serving import llamacpp_flags, model_commands, vllm_flags
from regraft.data.build.recipe import Recipe as DataRecipe
from regraft.graft.recipe import Recipe as GraftRecipe
from regraft.merge.recipe.recipe import Recipe as MergeRecipe
from regraft.rope import ContextSpec
from regraft.train.recipe.recipe import Recipe as TrainingRecipe

PYTHON = [(block.page.name, block.body) for block in blocks("python")]
PYTHON.append(("regraft/__init__.py", re.sub("^ {4}", "", "\n".join(
    re.findall(r"^ {4}.*$", regraft.__doc__ or "", re.M)), flags=re.M)))  # fmt: skip
YAML = blocks("yaml")
LONG = ContextSpec({"rope_type": "default", "rope_theta": 283461213.0}, 262144)


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_blocks_run(page, code, toys, tmp_path, monkeypatch):
    """In a folder where the models that they name are links to the toys."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "extended", "derivative", "hermes-262k"):
        (tmp_path / name).symlink_to(toys / MODELS[name])
    (tmp_path / "demo-out").symlink_to(toys / "demo-out")
    (tmp_path / "recipe.yaml").symlink_to(toys / RECIPES["merge"])
    exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize("block", YAML, ids=[block.page.name for block in YAML])
def test_recipes_are_accepted(block, tmp_path, monkeypatch):
    source = SimpleNamespace(rows="whole", chat=False)
    built = SimpleNamespace(sources={"books": source, "short": source},
                            mixes={"64k": {"books": 0.6, "short": 0.4}})  # fmt: skip
    monkeypatch.setattr("regraft.train.recipe.built.read_dataset", lambda folder: built)
    path = tmp_path / "recipe.yaml"
    keys = re.findall(r"^(\w+):", block.body, re.M)
    text = block.body
    if "merge_method" in keys:
        kind = MergeRecipe
    elif "sources" in keys or "steps" in keys:
        kind = DataRecipe
        if "sources" not in keys:  # a part of a recipe
            text += "sources: [{name: a, licence: CC0-1.0, text: a}]\n"
        if "output" not in keys:
            text += "output: {tokenizer: bytes}\n"
    elif "stages" in keys:
        kind = TrainingRecipe
    else:
        kind = GraftRecipe
        other = next(one.body for one in YAML if "method: recover" in one.body)
        (tmp_path / "recover.yaml").write_text(other)
        if "targets" not in keys:  # a part of a recipe
            text += "base: a\nextended: b\ntargets: c\nevaluate: {}\n"
    path.write_text(text)
    kind.read(path)


def _servers() -> list[list[str]]:
    """The commands of other programs on the pages, as words."""
    result = []
    for block in blocks("bash"):
        for line in re.sub(r"\\\n\s*", "", block.body).splitlines():
            if line.startswith(("vllm ", "llama-server ")):
                assert block.reason is not None, line
                result.append(shlex.split(line))
    return result


def test_servers_get_the_flags_that_cards_print():
    printed = [
        model_commands("hermes-262k", LONG)["vLLM"],
        vllm_flags("meta-llama/Meta-Llama-3-8B", LONG, 64).replace("=ADAPTER", "=ctx-lora"),
        model_commands("hermes-262k", LONG)["llama.cpp"].splitlines()[-1],
        llamacpp_flags(LONG, "ctx-lora.gguf"),
    ]
    assert _servers() == [shlex.split(line) for line in printed]
