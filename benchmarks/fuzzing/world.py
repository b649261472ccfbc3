"""The fuzzed commands and their tiny inputs: three related models, two adapters, texts, recipes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from regraft.adapters.extract.extract import extract_lora
from regraft.train.recipe.model import Toy
from regraft.train.toy_model import write_toy


@dataclass(frozen=True)
class Command:
    """A command line, run beside the folder `in`, and the files in it that may be damaged."""

    line: str
    reads: tuple[str, ...]  # glob patterns
    weight: int = 1


_MERGE = ("base/*", "derivative/*", "adapter/*", "merge.yaml")
_TRAIN = ("base/*", "train.yaml", "text.jsonl")
_GRAFT = ("base/*", "extended/*", "derivative/*", "graft.yaml")
COMMANDS = (
    Command("inspect in/base", ("base/*",), 2),
    Command("inspect in/extended", ("extended/*",), 2),
    Command("inspect in/adapter", ("adapter/*",), 2),
    Command("inspect in/plain", ("plain/*",), 2),
    Command("inspect in/base in/extended", ("base/*", "extended/*"), 2),
    Command("inspect in/adapter in/derivative", ("adapter/*", "derivative/*"), 2),
    Command("extract-lora in/base in/extended -o out --rank 2", ("base/*", "extended/*"), 3),
    Command("apply in/adapter in/derivative -o out", ("adapter/*", "derivative/*"), 3),
    Command("apply in/plain in/base -o out", ("plain/*", "base/*"), 3),
    Command("merge in/merge.yaml -o out", _MERGE, 5),
    Command(
        "merge in/adapters.yaml -o out --as-adapter",
        ("base/*", "twin/*", "plain/*", "adapters.yaml"),
        1,
    ),
    Command("train in/train.yaml -o out --dry-run", _TRAIN, 3),
    Command("train in/train.yaml -o out", _TRAIN, 3),
    Command("train in/lora.yaml -o out", ("base/*", "lora.yaml", "text.txt"), 1),
    Command("train in/recover.yaml -o out", ("base/*", "derivative/*", "recover.yaml"), 1),
    Command(
        "evaluate in/base -o out --suite toy,perplexity --haystack world --lengths 64 --items 2 "
        "--texts 1",
        ("base/*",),
        3,
    ),
    Command(
        "evaluate in/base -o out --suite qa_hard_1 --qa in/quiz.json --haystack in/text.txt "
        "--lengths 128 --items 2",
        ("base/*", "quiz.json", "text.txt"),
        1,
    ),
    Command(
        "evaluate --matrix recipient=in/base donor=in/extended graft=in/derivative -o out "
        "--suite toy,drift --haystack world --lengths 64 --items 2 --texts 1 --adapter in/adapter",
        ("base/*", "extended/*", "derivative/*", "adapter/*"),
        1,
    ),
    Command("theta 128 256 --probe in/probe.yaml --steps 1", ("base/*", "probe.yaml"), 1),
    Command("export in/base -o out.gguf --no-tokenizer", ("base/*",), 1),
    Command("export in/plain -o out.gguf --base in/base", ("plain/*", "base/*"), 1),
    Command("graft in/graft.yaml -o out --dry-run", _GRAFT, 1),
    Command("graft in/graft.yaml -o out", _GRAFT, 1),
    Command("plan in/train.yaml --gpus H100", ("base/*", "train.yaml"), 2),
)

_TRAINING = """\
model: in/base
method: {method}
seed: 1
stages:
  - {{length: 128, steps: 1, batch: 2, rate: 1e-3, mix: {{a: 1}}}}
data:
  held_out: 0.1
  sources:
    - {{name: a, {text}}}
memory: {{checkpoint: false, rows: 2}}
{more}"""


def build(folder: Path) -> None:
    """Write everything into `folder`, from fixed seeds."""
    toy = Toy(length=128, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2)
    for name in ("base", "extended", "derivative"):
        write_toy(folder / name, toy, 0)
    for seed, name in ((1, "extended"), (2, "derivative")):
        _change(folder / name, seed)
    _lengthen(folder / "extended")
    _cut_in_shards(folder / "extended")
    for name in ("base", "derivative"):
        (folder / name / "generation_config.json").write_text('{"eos_token_id": 2}')
        (folder / name / "special_tokens_map.json").write_text(
            '{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}'
        )
    extract_lora(
        str(folder / "base"), str(folder / "extended"), folder / "adapter", rank="2",
        layout="exact", verify=False,
    )  # fmt: skip
    for path in (folder / "adapter").iterdir():
        if path.suffix not in (".json", ".safetensors"):
            path.unlink()
    _plain_adapter(folder / "plain", 3)
    _plain_adapter(folder / "twin", 4)
    rng = random.Random(0)
    vocabulary = json.loads((folder / "base/tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    texts = [" ".join(rng.choices(words, k=160)) for _ in range(12)]
    (folder / "text.txt").write_text("\n".join(texts))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "quiz.json").write_text(json.dumps(_quiz(texts)))
    recipes = {
        "train": ("full", "jsonl: in/text.jsonl", "rope: {law: scaling}\n"),
        "lora": ("lora", 'text: in/text.txt, separator: "\\n"', "lora: {rank: 2}\n"),
        "recover": (
            "recover",
            "jsonl: in/text.jsonl, rows: packed",
            "recover: {teacher: in/derivative}\n",
        ),
    }
    needle = (
        'watch: {every: 1, rows: 1, needle: {fact: "note {key} {value} ;", question: "ask {key}", '
        'answer: "{value} ;", keys: [paris, oslo], values: [otter maple, copper violet], '
        "filler: a, rows: 2}}\n"
    )
    recipes["probe"] = ("full", 'text: in/text.txt, separator: "\\n"', needle)
    for name, (method, text, more) in recipes.items():
        (folder / f"{name}.yaml").write_text(_TRAINING.format(method=method, text=text, more=more))
    (folder / "merge.yaml").write_text(
        "merge_method: ties\nbase_model: in/base\nmodels:\n"
        "  - model: in/derivative\n    parameters: {weight: 0.5, density: [0.5, 0.9]}\n"
        "  - model: in/adapter\n    parameters:\n      weight:\n"
        "        - {filter: mlp, value: 0.3}\n"
        "        - value: 0.7\n      density: 0.8\ncontext: {from: in/adapter}\n"
        "parameters: {normalize: true, int8_mask: false}\ndtype: float32\nout_dtype: bfloat16\n"
    )
    (folder / "graft.yaml").write_text(
        "base: in/base\nextended: in/extended\ntargets:\n"
        "  - {name: one, model: in/derivative}\nranks: [2]\n"
        "recover: {stages: [{length: 64, steps: 1, batch: 1, rate: 1e-3}], "
        "data: {sources: [{name: a, synthetic: notes, words: 66, documents: 4}]}}\n"
        "evaluate: {suite: toy, haystack: world, lengths: [64], items: 2}\n"
    )
    (folder / "adapters.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: in/base\nmodels:\n"
        "  - {model: in/plain, parameters: {weight: 0.5}}\n"
        "  - {model: in/twin, parameters: {weight: 0.5}}\n"
    )


def _change(folder: Path, seed: int) -> None:
    path = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor + 0.01 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 2
        else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(state, path, {"format": "pt"})


def _lengthen(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["max_position_embeddings"] = 512
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 700.0}
    path.write_text(json.dumps(config))


def _cut_in_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(2):
        part = dict(list(state.items())[i::2])
        shard = f"model-{i + 1:05}-of-00002.safetensors"
        save_file(part, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )


def _plain_adapter(folder: Path, seed: int) -> None:
    """An adapter as PEFT writes it, without regraft's record."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors[f"{stem}.lora_A.weight"] = torch.randn(4, 32, generator=generator) / 10
        factors[f"{stem}.lora_B.weight"] = torch.randn(32, 4, generator=generator) / 10
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "in/base",
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj"],
        "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False, "use_rslora": False,
        "use_dora": False, "modules_to_save": None, "layers_to_transform": None,
        "init_lora_weights": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _quiz(texts: list[str]) -> dict[str, object]:
    """A file of SQuAD's format."""
    return {
        "version": "2.0",
        "data": [
            {
                "title": f"article {i}",
                "paragraphs": [
                    {
                        "context": text[:60],
                        "qas": [
                            {
                                "question": f"What is in article {i}?",
                                "id": str(i),
                                "answers": [{"text": text[:10], "answer_start": 0}],
                                "is_impossible": False,
                            }
                        ],
                    }
                ],
            }
            for i, text in enumerate(texts)
        ],
    }
