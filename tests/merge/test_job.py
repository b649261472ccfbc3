"""Merges end to end on small folders, against mergekit in its own process and against maths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from regraft import progress
from regraft.adapters.apply.apply import apply_lora
from regraft.adapters.extract.extract import extract_lora
from regraft.errors import InputError
from regraft.merge.job import merge_models, summary
from regraft.records import MergeRecord, read_record

CONFIG = {**models.LLAMA, "num_hidden_layers": 4}
EPS = 2**-24  # half an ulp of float32, relative


MIXTRAL = {
    **models.LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
WORDS = 70  # of the tokenizer; the embeddings have 80 rows


def tokenizer(words: dict[str, int]) -> str:
    """A tokenizer.json that the tokenizers library reads."""
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    })  # fmt: skip


def give_tokenizer(folder: Path, words: dict[str, int]) -> None:
    (folder / "tokenizer.json").write_text(tokenizer(words))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"})
    )


def experts(seed: int) -> dict[str, torch.Tensor]:
    """A Mixtral of which later experts changed more."""
    state = models.weights({**models.LLAMA})
    generator = torch.Generator().manual_seed(50)
    moved = torch.Generator().manual_seed(seed)
    for layer in range(2):
        for name in ("gate", "up", "down"):
            del state[f"model.layers.{layer}.mlp.{name}_proj.weight"]
        prefix = f"model.layers.{layer}.block_sparse_moe."
        shapes = {f"experts.{e}.{w}.weight": (64, 96) if w == "w2" else (96, 64)
                  for e in range(4) for w in ("w1", "w2", "w3")}  # fmt: skip
        for name, shape in {"gate.weight": (4, 64), **shapes}.items():
            value = 0.1 * torch.randn(shape, generator=generator)
            size = 0.01 * (1 + int(name.split(".")[1])) if "experts" in name else 0.01
            noise = torch.randn(shape, generator=moved)
            state[prefix + name] = value + size * noise if seed else value
    return state


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a, b, c (changed by 3% everywhere), long (a low-rank change and a longer context), and
    the adapters that make `long` and `a` of the base."""
    root = tmp_path_factory.mktemp("zoo")
    base = models.weights(CONFIG)
    models.save(root / "base", CONFIG, base)
    for seed, name in enumerate("abc", 1):
        generator = torch.Generator().manual_seed(seed)
        state = models.changed(base, rank=None, size=0.03, seed=seed, names="")
        for key, value in state.items():
            if value.ndim == 1:
                state[key] = value + 0.03 * torch.randn(value.shape, generator=generator)
        models.save(root / name, CONFIG, state)
        models.save(root / f"{name}16", CONFIG, state, dtype=torch.bfloat16)
    models.save(root / "base16", CONFIG, base, dtype=torch.bfloat16)
    long = models.changed(base, rank=4, size=0.03, seed=9)
    models.save(root / "long", {**CONFIG, **models.LONG}, long)
    for name in ("base", "a", "b"):
        shutil.copytree(root / name, root / f"{name}_words")
        give_tokenizer(root / f"{name}_words", {f"w{i}": i for i in range(WORDS)})
    for seed, name in enumerate(("base", "a", "b")):
        models.save(root / f"moe_{name}", MIXTRAL, experts(seed))
    for name, source, rank in (("lora", "long", 4), ("lora2", "a", 6)):
        extract_lora(
            root / "base", root / source, root / name, rank=rank, dtype="float32", verify=False
        )
    return root


@pytest.fixture(autouse=True)
def _in_the_zoo(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo)


def write(folder: Path, recipe: dict[str, Any] | str) -> Path:
    path = folder / "recipe.yaml"
    text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False)
    path.write_text(textwrap.dedent(text))
    return path


def run(folder: Path, recipe: dict[str, Any] | str, **options: Any) -> dict[str, torch.Tensor]:
    merge_models(write(folder, recipe), folder / "out", **options)
    return models.load(folder / "out")


def complaint(folder: Path, recipe: dict[str, Any] | str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        merge_models(write(folder, recipe), folder / "out", **options)
    assert caught.value.exit_code == 2
    assert not (folder / "out").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def of(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": parameters} for name in names]


def part(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [start, stop], "parameters": parameters}


# Conformance: the same YAML through mergekit, in one process of its own.

TWO = [
    {"model": "a", "parameters": {"weight": 0.6, "density": [0.35, 0.72]}},
    {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}]}},
]
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {
        "merge_method": "linear",
        "models": of("a", weight=0.6) + of("b", weight="3e-1"),
    },
    "linear with the base among the models": {
        "merge_method": "linear",
        "base_model": "base",
        "models": of("a", weight=0.6) + of("base", weight=0.3),
    },
    "slerp with gradients by filter": {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": [part("a", 0, 4), part("b", 0, 4)]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
    },
    "passthrough layer stack": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [part("a", 0, 3)]},
            {"sources": [part("b", 1, 4, scale=[{"filter": "o_proj", "value": 0.0},
                                                {"filter": "down_proj", "value": 0.5},
                                                {"value": 1.0}])]},
        ],
    },
    "several slices, every scope": {
        "merge_method": "linear",
        "slices": [
            {"sources": [part("a", 0, 2, weight=0.3), part("b", 2, 4)],
             "parameters": {"weight": [0.2, "8e-1"]}},
            {"sources": [part("c", 1, 2), part("b", 0, 1, weight=[{"filter": "mlp", "value": 2}])]},
        ],
        "parameters": {"weight": 1.0, "normalize": False},
    },
    "ties with gradients and filters": {
        "merge_method": "ties",
        "base_model": "base",
        "models": TWO,
        "parameters": {"normalize": True, "density": 0.55, "int8_mask": True},
    },
    "task arithmetic, weights below zero": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "base"}, *of("a", weight=[0.6, -0.1, 1]), *of("b", weight=0.4),
                   {"model": "c"}],
        "parameters": {"lambda": 1.1, "weight": 0.25},
    },
    "modules": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "modules": {
            "default": {
                "models": [{"model": "a"}, *of("b", weight=0.1)],
                "parameters": {"weight": [{"filter": "layers.1", "value": 3}]},
            }
        },
        "parameters": {"weight": 0.25},
    },
    **{
        f"padded embeddings, tokenizer of {source}": {
            "merge_method": "ties",
            "base_model": "base_words",
            "models": of("a_words", weight=0.6, density=0.4) + of("b_words", weight=0.4),
            "parameters": {"density": 0.7},
            "tokenizer_source": source,
        }
        for source in ("base", "union", "a_words")
    },
    "tokenizer untouched": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": of("a", weight=0.6, density=0.6, gamma=0.05) + of("b", weight=0.4),
        "parameters": {"density": 0.9, "gamma": 0.01},
    },
}  # fmt: skip
PEER = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False)
for name, recipe in json.load(sys.stdin).items():
    run_merge(MergeConfiguration.model_validate(recipe), "peer/" + name, options)
"""


@pytest.fixture(scope="module")
def peer(zoo: Path) -> Path:
    """mergekit's outputs of all RECIPES."""
    if find_spec("mergekit") is None:
        pytest.skip("mergekit is not installed")
    done = subprocess.run(
        [sys.executable, "-c", PEER], input=json.dumps(RECIPES), text=True, capture_output=True,
        cwd=zoo, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return zoo / "peer"


@pytest.mark.parametrize("name", list(RECIPES))
def test_same_yaml_gives_mergekits_tensors(name: str, peer: Path, tmp_path: Path) -> None:
    ours, theirs = run(tmp_path, RECIPES[name]), models.load(peer / name)
    base = models.load(Path("base"))
    assert ours.keys() == theirs.keys()
    for key, want in theirs.items():
        assert (ours[key].shape, ours[key].dtype) == (want.shape, want.dtype)
        change = want.norm()
        if key in base:
            change = (want - base[key][: len(want)]).norm()
        allowed = max(1e-5 * float(change), 4 * EPS * float(want.norm()))
        assert float((ours[key] - want).norm()) <= allowed, key
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == json.loads(
        (peer / name / "config.json").read_text()
    )["num_hidden_layers"]  # fmt: skip
    assert config["vocab_size"] == len(ours["model.embed_tokens.weight"])


# Mixtures of experts: mergekit joins a layer's experts to one tensor, regraft does not.

MOE: dict[str, Any] = {
    "merge_method": "task_arithmetic",
    "base_model": "moe_base",
    "models": of("moe_a", weight=0.6) + of("moe_b", weight=0.4),
}
RECIPES["mixture of experts"] = MOE


def test_elementwise_merges_of_experts_are_mergekits(peer: Path, tmp_path: Path) -> None:
    ours, theirs = run(tmp_path, MOE), models.load(peer / "mixture of experts")
    for layer in range(2):
        stored = f"model.layers.{layer}.block_sparse_moe.experts."
        for e in range(4):
            w1, w2, w3 = (ours[f"{stored}{e}.{w}.weight"] for w in ("w1", "w2", "w3"))
            joined = f"model.layers.{layer}.mlp.experts."
            torch.testing.assert_close(torch.cat([w1, w3]), theirs[f"{joined}gate_up_proj"][e])
            torch.testing.assert_close(w2, theirs[f"{joined}down_proj"][e])
    assert "mergekit joins" not in (tmp_path / "out" / "README.md").read_text()


def test_ties_trims_each_expert_by_itself_and_says_so(tmp_path: Path) -> None:
    oracle = pytest.importorskip("mergekit.merge_methods")
    recipe = {**MOE, "merge_method": "ties", "parameters": {"density": 0.3}}
    with pytest.warns(UserWarning, match="mergekit joins all experts"):
        ours = run(tmp_path, recipe)
    base, a, b = (models.load(Path(f"moe_{name}")) for name in ("base", "a", "b"))
    parameters = {"weight": [0.6, 0.4], "density": 0.3}

    def mergekits(*tensors: torch.Tensor) -> torch.Tensor:
        return oracle.merge_tensors(tensors, "ties", parameters=parameters, base_index=0)

    names = [f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight" for e in range(4)]
    for name in names:
        torch.testing.assert_close(ours[name], mergekits(base[name], a[name], b[name]))
    joined = mergekits(*(torch.stack([state[name] for name in names]) for state in (base, a, b)))
    moved = [float((joined[e] != base[name]).float().mean()) for e, name in enumerate(names)]
    assert moved[0] < 0.1 < 0.6 < moved[3]  # the one share of all experts goes to the last
    assert "mergekit joins" in (tmp_path / "out" / "README.md").read_text()


# Context, donors, dtypes.

LONG_TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": of("a", "b", weight=0.5, density=0.6) + of("lora", weight=1.0),
    "context": {"from": "lora"},
}


def test_ties_of_a_long_adapter_and_two_derivatives_has_the_long_context(tmp_path: Path) -> None:
    from transformers import AutoConfig

    run(tmp_path, LONG_TIES)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == 2048
    assert config.rope_parameters["rope_theta"] == 160000.0
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["rope_theta"] == 160000.0


def test_unequal_rope_without_a_context_is_refused(tmp_path: Path) -> None:
    message = complaint(tmp_path, {k: v for k, v in LONG_TIES.items() if k != "context"})
    assert "context: {from: " in message
    assert "theta 10000, 256" in message
    assert "theta 160000, 2k" in message


def test_context_values_change_the_donors(tmp_path: Path) -> None:
    record = merge_models(
        write(tmp_path, {**LONG_TIES, "context": "theta=8e6,length=4k"}), tmp_path / "out"
    )
    assert record.context.output.max_position_embeddings == 4096
    assert record.context.output.rope_parameters["rope_theta"] == 8e6
    message = complaint(tmp_path / "..", {**LONG_TIES, "context": {"from": "nobody"}})
    assert "'nobody' is not an input of this recipe" in message


def test_donor_does_not_depend_on_hash_seeds(tmp_path: Path) -> None:
    recipe = write(tmp_path, {
        "merge_method": "linear", "models": of("b", "long", "a", weight=1), "context": "long",
    })  # fmt: skip
    record = merge_models(recipe, tmp_path / "out", dry_run=True)
    assert record.donor.config == record.donor.tokenizer == "b"
    code = (
        "import sys; from regraft.merge.recipe.recipe import Recipe\n"
        "print(*(ref for ref, _ in Recipe.read(sys.argv[1]).references()))"
    )
    for seed in "0123":
        done = subprocess.run(
            [sys.executable, "-c", code, str(recipe)], capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.stdout == "b long a\n", done.stderr


def test_arithmetic_is_float32_and_rounds_once(tmp_path: Path) -> None:
    got = run(tmp_path, {"merge_method": "linear", "models": of("a16", "b16", "c16", weight=1)})
    inputs = [models.load(Path(name)) for name in ("a16", "b16", "c16")]
    for key, value in got.items():
        assert value.dtype == torch.bfloat16
        exact = sum(one[key].double() for one in inputs) / 3
        # float32's own rounding may tip an entry that lies between two bfloat16 numbers
        assert int((value != exact.bfloat16()).sum()) <= value.numel() / 1000, key


def test_share_lost_to_storage_is_reported(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base16",
              "models": of("a16", weight=0.1), "out_dtype": "bfloat16"}  # fmt: skip
    record = merge_models(write(tmp_path, recipe), tmp_path / "out")
    got, base, a = (models.load(Path(n)) for n in (str(tmp_path / "out"), "base16", "a16"))
    for key, fact in record.tensors.items():
        exact = base[key].float() + 0.1 * (a[key].float() - base[key].float())
        change = float((exact - base[key].float()).norm())
        assert fact.figures.change_norm == pytest.approx(change, rel=1e-3)
        lost = float((exact - got[key].float()).norm()) / change
        assert fact.figures.lost_to_storage == pytest.approx(lost, rel=1e-2)
    assert 0.05 < record.totals.figures.lost_to_storage < 1.0


def test_mixed_dtypes_need_a_word_and_then_merge(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"merge_method": "linear", "models": of("a", "b16", weight=1)}
    assert "'out_dtype: bfloat16'" in complaint(tmp_path, recipe)
    got = run(tmp_path, {**recipe, "out_dtype": "float16"})
    assert {value.dtype for value in got.values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_scale_is_a_factor_on_the_whole_change(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": of("a", weight=1), "scale": 0.25}  # fmt: skip
    got, base, a = run(tmp_path, recipe), models.load(Path("base")), models.load(Path("a"))
    for key, value in got.items():
        torch.testing.assert_close(value, base[key] + 0.25 * (a[key] - base[key]))


# Adapters.


def test_adapters_merge_like_the_models_they_make(tmp_path: Path) -> None:
    for adapter, name in (("lora", "m1"), ("lora2", "m2")):
        apply_lora(adapter, "base", tmp_path / name, context="checkpoint")
    both = {"merge_method": "ties", "base_model": "base", "context": {"from": "base"}}
    weights = {"weight": 0.5, "density": 0.7}
    got = run(tmp_path, {**both, "models": of("lora", "base+lora2", **weights)})
    made = tmp_path / "made"
    made.mkdir()
    full = run(made, {**both, "models": of(str(tmp_path / "m1"), str(tmp_path / "m2"), **weights)})
    base = models.load(Path("base"))
    for key, value in full.items():
        change = float((value - base[key]).norm())
        # an entry at the trim threshold may fall on either side of it
        assert float((got[key] - value).norm()) <= 0.02 * change + 1e-6, key


def test_as_adapter_is_exact_for_task_arithmetic_and_states_its_error_otherwise(
    tmp_path: Path,
) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": of("lora", weight=0.7) + of("base+lora2", weight=0.3),
              "context": {"from": "lora"}}  # fmt: skip
    got = run(tmp_path, recipe)
    record = merge_models(write(tmp_path, recipe), tmp_path / "adapter", as_adapter=True)
    assert record.totals.error < 1e-6
    assert record.totals.rank_max <= 10
    apply_lora(tmp_path / "adapter", "base", tmp_path / "applied")
    applied, base = models.load(tmp_path / "applied"), models.load(Path("base"))
    for key, value in got.items():
        change = float((value - base[key]).norm())
        assert float((applied[key] - value).norm()) <= 1e-5 * change + 4 * EPS * value.norm()
    assert (tmp_path / "applied" / "config.json").read_text() == (
        tmp_path / "out" / "config.json"
    ).read_text()
    ties = {**recipe, "merge_method": "ties", "parameters": {"density": 0.5}}
    record = merge_models(write(tmp_path, ties), tmp_path / "ties", as_adapter=True)
    assert 0.05 < record.totals.error < 0.6
    assert summary(record)


def test_as_adapter_keeps_the_dtype_of_its_inputs(tmp_path: Path) -> None:
    for name, source, dtype in (("x", "long", "bfloat16"), ("y", "a", "bfloat16"),
                                ("z", "a", "float16")):  # fmt: skip
        extract_lora("base", source, tmp_path / name, rank=2, dtype=dtype, verify=False)
    x, y, z = (f"base+{tmp_path / name}" for name in "xyz")
    both = {"merge_method": "task_arithmetic", "base_model": "base", "context": {"from": "base"}}
    for number, (inputs, given, expected) in enumerate((
        ((x, y), {}, torch.bfloat16),
        ((x, z), {}, torch.float32),
        ((x, y), {"out_dtype": "float16"}, torch.float16),
    )):  # fmt: skip
        recipe = {**both, **given, "models": of(*inputs, weight=0.5)}
        out = tmp_path / str(number)
        record = merge_models(write(tmp_path, recipe), out, as_adapter=True)
        state = load_file(out / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in state.values()} == {expected}
        assert record.totals.bytes == sum(tensor.nbytes for tensor in state.values())
        card = (out / "README.md").read_text()
        assert "| vLLM | with --max-lora-rank 8 |" in card
        # the sum has four directions; two factors, each rounded by half a step
        assert record.totals.error <= 2 * torch.finfo(expected).eps + 1e-6


def test_as_adapter_refuses_models(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": of("a", weight=1)}
    assert "a is no adapter on base" in complaint(tmp_path, recipe, as_adapter=True)


# Streaming, resuming, reporting.


def test_threads_change_no_byte(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    digests = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = tmp_path / str(count)
            merge_models(write(tmp_path, LONG_TIES), out)
            digests.append({p.name: p.read_bytes() for p in sorted(out.iterdir())})
    finally:
        torch.set_num_threads(before)
    assert digests[0] == digests[1]


def test_block_size_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regraft.merge.native import stream

    recipe = {**LONG_TIES, "models": of("a", "b", "long", weight=0.5, density=0.6),
              "context": "long"}  # fmt: skip
    whole = run(tmp_path, recipe)
    monkeypatch.setattr(stream, "BLOCK", 1000)
    (tmp_path / "small").mkdir()
    small = run(tmp_path / "small", recipe)
    assert all(torch.equal(whole[key], small[key]) for key in whole)


def test_a_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.merge import job as execute

    recipe = write(tmp_path, LONG_TIES)
    merge_models(recipe, tmp_path / "whole")
    calls = 0
    measure = execute.conflicts.measure

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(execute.conflicts, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        merge_models(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="unfinished"):
        merge_models(recipe, tmp_path / "out")
    calls = 15
    merge_models(recipe, tmp_path / "out", resume=True)
    assert calls < 15 + 39
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_conflict_report_matches_the_tensors(tmp_path: Path) -> None:
    recipe = {"merge_method": "task_arithmetic", "base_model": "base",
              "models": of("a", weight=0.5) + of("b", weight=0.25)}  # fmt: skip
    record = merge_models(write(tmp_path, recipe), tmp_path / "out")
    key = "model.layers.1.mlp.up_proj.weight"
    base, a, b = (models.load(Path(name))[key].double() for name in ("base", "a", "b"))
    fact = record.tensors[key].figures
    (pair,) = fact.pairs
    assert pair.models == ("a", "b")
    cosine = float(((a - base) * (b - base)).sum() / (a - base).norm() / (b - base).norm())
    apart = float((((a - base) * (b - base)) < 0).double().mean())
    assert fact.changes["a"].relative == pytest.approx(float((a - base).norm() / base.norm()))
    assert pair.cosine == pytest.approx(cosine, abs=1e-6)
    assert pair.sign_conflict == pytest.approx(apart, abs=1e-6)
    assert fact.changes["a"].retained == pytest.approx(0.5, abs=0.02)
    assert 0 < pair.overlap < 0.5
    assert set(record.roles) >= {"q_proj", "down_proj", "norm", "embedding", "head"}
    assert (tmp_path / "out" / "merge.png").stat().st_size > 10_000
    assert (
        "How much of each change the result retains" in (tmp_path / "out" / "README.md").read_text()
    )
    assert read_record(tmp_path / "out" / "regraft.json", MergeRecord, "mend") == record


def test_slices_may_have_different_numbers_of_inputs(tmp_path: Path) -> None:
    def sources(start: int, stop: int, *names: str) -> dict[str, Any]:
        return {"sources": [part(name, start, stop) for name in names]}

    recipe = {
        "merge_method": "ties",
        "base_model": "base",
        "slices": [
            sources(0, 1, "a", "b", "base"),
            sources(1, 2, "c", "base"),
            sources(2, 3, "base"),
            sources(3, 4, "b", "a", "base"),
        ],
        "parameters": {"weight": 1.0, "density": 0.5},
    }
    record = merge_models(write(tmp_path, recipe), tmp_path / "out")
    tensors = {name: fact for name, fact in record.tensors.items() if "up_proj" in name}
    assert [list(fact.figures.changes) for fact in tensors.values()] == [
        ["a", "b"], ["c"], [], ["b", "a"],
    ]  # fmt: skip
    (pair,) = record.totals.figures.pairs  # one pair, in whatever order a slice lists it
    assert pair.models == ("a", "b")
    assert set(record.totals.figures.changes) == {"a", "b", "c"}
    assert (tmp_path / "out" / "merge.png").is_file()
    assert "a and b" in dict(summary(record))


def test_a_merge_without_a_base_does_not_speak_of_changes(tmp_path: Path) -> None:
    recipe = {"merge_method": "linear", "models": of("a", weight=0.75) + of("base", weight=0.25)}
    lines = dict(summary(merge_models(write(tmp_path, recipe), tmp_path / "out")))
    assert not any(label.startswith("change of") for label in lines)
    assert "the result is 25% of the way there" in lines["base"]


def test_a_base_that_no_slice_lists_is_not_what_changes_are_measured_from(tmp_path: Path) -> None:
    sources = [part("a", 0, 4, weight=0.25), part("b", 0, 4, weight=0.75)]
    recipe = {"merge_method": "linear", "base_model": "base", "slices": [{"sources": sources}]}
    lines = dict(summary(merge_models(write(tmp_path, recipe), tmp_path / "out")))
    assert "the result is 75% of the way there" in lines["b"]
    assert "minus the first model of its slice" in (tmp_path / "out" / "README.md").read_text()


def test_dry_run_writes_nothing_and_says_everything(tmp_path: Path) -> None:
    record = merge_models(write(tmp_path, LONG_TIES), tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    plan = record.plan
    assert {"method", "context", "config", "tokenizer", "reads", "peak memory", "time"} <= set(plan)
    assert "base_model" in plan["config"]
    assert "density (0.6, 0.6, 1)" in plan["parameters"]
    assert plan["q_proj"].endswith("]")


def test_templates_and_tokenizers(tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        shutil.copytree("a" if name == "t1" else "b", tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {"x": 0, "y": 1}}, "made_by": name})
        )
        (tmp_path / name / "tokenizer_config.json").write_text('{"chat_template": "{{ old }}"}')
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": of(str(tmp_path / "t1"), str(tmp_path / "t2"), weight=1),
        "tokenizer_source": str(tmp_path / "t2"),
        "chat_template": "{{ messages }} and more",
    }
    run(tmp_path, recipe)
    out = tmp_path / "out"
    assert json.loads((out / "tokenizer.json").read_text())["made_by"] == "t2"
    assert (out / "chat_template.jinja").read_text() == "{{ messages }} and more"
    assert "old" not in (out / "tokenizer_config.json").read_text()


def test_a_nested_tokenizer_json_gets_a_sentence(tmp_path: Path) -> None:
    shutil.copytree("a", tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ' + "[" * 5000)
    recipe = {"merge_method": "passthrough", "models": of(str(tmp_path / "broken"))}
    assert "tokenizer.json" in complaint(tmp_path, recipe)


@pytest.mark.parametrize(
    "content",
    ["[1]", "{", "[" * 5000, '{"chat_template": "\\ud800"}', "\xff", '{"chat_template": [1, {}]}'],
    ids=["list", "cut", "deep", "surrogate", "latin-1", "templates"],
)
@pytest.mark.parametrize("template", ["auto", "{{ messages }} and more"])
def test_broken_tokenizer_configs_get_a_sentence(
    content: str, template: str, tmp_path: Path
) -> None:
    shutil.copytree("a", tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
    recipe = {"merge_method": "passthrough", "models": of(str(tmp_path / "broken")),
              "chat_template": template}  # fmt: skip
    if "templates" in content or "[1, {}]" in content:
        merge_models(write(tmp_path, recipe), tmp_path / "out", dry_run=True)
    else:
        assert "tokenizer_config.json" in complaint(tmp_path, recipe)


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
def test_a_union_of_vocabularies_is_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    """mergekit's own order is that of a set."""
    for name in ("e", "c", "d", "b"):
        shutil.copytree("a", tmp_path / name)
        give_tokenizer(tmp_path / name, {**{f"w{i}": i for i in range(9)}, f"own_{name}": 9})
    recipe = {"merge_method": "linear", "tokenizer_source": "union",
              "models": of(*(str(tmp_path / name) for name in "ecdb"), weight=1)}  # fmt: skip
    merge_models(write(tmp_path, recipe), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    numbers = written["model"]["vocab"]
    numbers |= {token["content"]: token["id"] for token in written["added_tokens"]}
    own = [number for number, name in sorted((v, k) for k, v in numbers.items()) if "own" in name]
    assert [numbers[f"own_{name}"] for name in "ecdb"] == own == [9, 10, 11, 12]


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
def test_what_is_not_native_runs_in_mergekit_with_our_context(tmp_path: Path) -> None:
    recipe = {"merge_method": "ram", "base_model": "base", "models": [{"model": "a"},
              {"model": "long"}], "context": {"from": "long", "length": "4k"}}  # fmt: skip
    record = merge_models(write(tmp_path, recipe), tmp_path / "out")
    assert record.engine == "mergekit"
    assert "ram" in record.engine_why
    assert read_record(tmp_path / "out" / "regraft.json", MergeRecord, "mend") == record
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (160000.0, 4096)
    assert models.load(tmp_path / "out").keys() == models.load(Path("base")).keys()
    assert "ram" in complaint(tmp_path / "..", recipe, engine="native")


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
def test_mergekit_reads_what_was_checked_and_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its weights, a model has pickled ones, an adapter, and code; its name has a '+'."""
    shown: list[str] = []
    monkeypatch.setattr(
        progress.Bar, "advance", lambda bar, amount=1, text=None: shown.append(str(text))
    )
    odd = shutil.copytree("a_words", tmp_path / "odd+model")
    (odd / "model.safetensors").rename(odd / "weights.safetensors")
    torch.save({k: v + 1 for k, v in models.load(Path("a")).items()}, odd / "pytorch_model.bin")
    for path in Path("lora2").iterdir():
        if path.name.startswith("adapter_"):
            shutil.copy(path, odd)
    (odd / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, auto in (("config", "AutoConfig"), ("tokenizer_config", "AutoTokenizer")):
        settings = json.loads((odd / f"{name}.json").read_text())
        settings["auto_map"] = {auto: "evil.X"}
        (odd / f"{name}.json").write_text(json.dumps(settings))
    recipe = {
        "merge_method": "task_arithmetic", "base_model": "base_words", "tokenizer_source": str(odd),
        "models": [
            {"model": str(odd), "parameters": {"weight": 0.25}},
            {"model": "lora2", "parameters": {"weight": 0.75}},
        ],
        "context": {"from": "base"},
    }  # fmt: skip
    (tmp_path / "native").mkdir()
    native = run(tmp_path / "native", recipe)
    theirs = run(tmp_path, recipe, engine="mergekit")
    assert any("Executing graph, step" in text for text in shown)
    assert theirs.keys() == native.keys()
    for name, value in native.items():
        torch.testing.assert_close(theirs[name], value, atol=8 * EPS, rtol=8 * EPS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"w0": 0, "w1": 99}, "'w1' of other has number 99, and its embedding has rows 0 to 79"),
        ({"w0": 0, "w1": -1}, "has number -1"),
        ({"w0": 0, "w1": 0}, "'w0' and 'w1' of other share the number 0"),
        ({"w0": 0, "w1": "x"}, "is no tokenizer"),
    ],
)
def test_vocabularies_that_cannot_be_aligned_are_refused_before_mergekit_starts(
    words: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.merge.mergekit import engine

    monkeypatch.setattr(engine, "_run", None)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name)
    shutil.copytree("b", tmp_path / "other")
    give_tokenizer(tmp_path / "other", words)
    recipe = {"merge_method": "linear", "models": of("a_words", str(tmp_path / "other"), weight=1),
              "tokenizer_source": "base"}  # fmt: skip
    message = complaint(tmp_path, recipe).replace(str(tmp_path) + "/", "")
    assert expected in message


def test_shapes_are_compared_before_mergekit_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.merge.mergekit import engine

    monkeypatch.setattr(engine, "_run", None)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: name)
    wide = {**CONFIG, "intermediate_size": 128}
    models.save(tmp_path / "wide", wide, models.weights(wide))
    recipe = {"merge_method": "ram", "base_model": "base",
              "models": [{"model": str(tmp_path / "wide")}]}  # fmt: skip
    assert "models of one shape" in complaint(tmp_path, recipe)


def test_unlike_vocabularies_of_one_size_are_named(tmp_path: Path) -> None:
    shutil.copytree("b", tmp_path / "other")
    words = {f"w{i}": i for i in range(WORDS)} | {"w3": 4, "w4": 3}
    give_tokenizer(tmp_path / "other", words)
    recipe = {"merge_method": "linear", "models": of("a_words", str(tmp_path / "other"), weight=1)}
    with pytest.warns(UserWarning, match="'w3' has number 3 in a_words and 4 in"):
        merge_models(write(tmp_path, recipe), tmp_path / "out", dry_run=True)


# Bad input: one sentence, exit 2, nothing written.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merge_method": "linaer"}, "did you mean linear?"),
        ({"models": of("a", weight=1) + of("gone", weight=1)}, "line 6: gone does not exist"),
        ({"models": of("a", "b", wieght=1)}, "did you mean weight?"),
        ({"models": of("a", "b")}, "needs the parameter weight of a"),
        ({"models": of("a", "b", weight="much")}, "must be a number"),
        ({"models": of("a", "b", weight=[1, "x"])}, "must be a number"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "base model"),
        ({"merge_method": "slerp", "base_model": "a", "models": of("a", "b", "c"),
          "parameters": {"t": 0.5}}, "1 model"),
        ({"merge_method": "passthrough"}, "1 model"),
        ({"models": of("a", "lora", weight=1)}, "name the model that it changes as base_model"),
        ({"models": None, "slices": [{"sources": [part("a", 0, 5)]}],
          "merge_method": "passthrough"}, "has 4 layers"),
        ({"tokenizer_source": "c"}, "no input"),
        ({"chat_template": "chatlm"}, "neither Jinja text"),
        ({"context": {"rope_type": "yran"}}, "did you mean yarn?"),
        ({"merge_method": "ties", "base_model": "base", "models": of("a", weight=1, density=1.5)},
         "between 0 and 1"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused_before_work(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {"merge_method": "linear", "models": of("a", "b", weight=1), **change}
    message = complaint(tmp_path, {k: v for k, v in recipe.items() if v is not None})
    assert words in message
    assert "recipe.yaml, line" in message


def test_unlike_models_are_refused(tmp_path: Path) -> None:
    base = models.load(Path("base"))
    wide = {**CONFIG, "intermediate_size": 128}
    words = {**CONFIG, "vocab_size": 90}
    tied = {**CONFIG, "tie_word_embeddings": True}
    deep = {**CONFIG, "num_hidden_layers": 5}
    cases = {
        "wide": (wide, models.weights(wide), "models of one shape"),
        "words": (words, models.weights(words), "the vocabularies differ"),
        "tied": (tied, models.weights(tied), "tied to the embedding"),
        "deep": (deep, models.weights(deep), "gives 5 layers"),
        "less": (CONFIG, {k: v for k, v in base.items() if "2.mlp.up" not in k}, "has no tensor"),
        "heads": ({**CONFIG, "num_attention_heads": 8}, base, "num_attention_heads 8"),
    }
    for name, (config, state, words_) in cases.items():
        models.save(tmp_path / name, config, state)
        recipe = {"merge_method": "linear", "models": of("a", str(tmp_path / name), weight=1)}
        message = complaint(tmp_path, recipe)
        assert words_ in message, name


def test_a_folder_that_holds_the_recipe_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    recipe = write(tmp_path / "mine", LONG_TIES)
    with pytest.raises(InputError, match="overlaps the input"):
        merge_models(recipe, recipe.parent, overwrite=True)
    assert recipe.is_file()


def test_nan_in_one_input_is_named(tmp_path: Path) -> None:
    state = models.load(Path("b"))
    key = "model.layers.2.mlp.up_proj.weight"
    state[key][3, 5] = float("nan")
    models.save(tmp_path / "bad", CONFIG, state)
    recipe = {"merge_method": "linear", "models": of("a", str(tmp_path / "bad"), weight=1)}
    message = complaint(tmp_path, recipe)
    assert key in message
    assert str(tmp_path / "bad") in message


def test_quantised_weights_and_overflow_are_refused(tmp_path: Path) -> None:
    state = models.load(Path("b"))
    state["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    folder = models.save(tmp_path / "int8", CONFIG, models.load(Path("b")))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    recipe: dict[str, Any] = {"merge_method": "linear", "models": of("a", str(folder), weight=1)}
    assert "not quantised" in complaint(tmp_path, recipe)
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "out_dtype": "float16",
              "models": of("a", weight=1e9)}  # fmt: skip
    assert "use smaller weights" in complaint(tmp_path, recipe)


def test_an_adapter_of_strangers_is_refused(tmp_path: Path) -> None:
    models.save(tmp_path / "stranger", CONFIG, models.weights(CONFIG, seed=77))
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "stranger"),
              "models": of("lora", weight=1), "context": {"from": "lora"}}  # fmt: skip
    message = complaint(tmp_path, recipe)
    assert "no relative" in message
    assert "line 4" in message
