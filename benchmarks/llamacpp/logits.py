"""Logits of llama.cpp against those of transformers: RoPE families, and a real model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import regraft
from llamacpp.runner import Llama, export

SCALED = {"factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": SCALED,
    "yarn, attention_factor 1.3": {**SCALED, "rope_type": "yarn", "attention_factor": 1.3},
    "llama3": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        **SCALED,
        "short_factor": [1.0] * 16,
        "long_factor": [1.0 + i / 4 for i in range(16)],
    },
}
TEXTS = (
    "The river is 1234 metres wide, isn't it?\n\nWe'll see: 3.14159 and x += 7;\n",
    "def f(a, b):\n    return a**2 + b  # été, 日本語, emoji 🙂\n",
)


def rope_families(llama: Llama, out: Path) -> str:
    rows = [
        "## RoPE families: logits in llama.cpp and in transformers\n",
        "Toys with random weights, 200 random tokens of a context of 256, all in float32. "
        "Difference of logits as a share of their standard deviation; the last column is the "
        "same between this RoPE and the plain one, in transformers.\n",
        "| RoPE | largest difference | mean difference | this RoPE against none |",
        "|---|--:|--:|--:|",
    ]
    ids = torch.randint(3, 190, (1, 200), generator=torch.Generator().manual_seed(1))
    plain = None
    for name, values in ROPES.items():
        model = toy(out / "rope", {"rope_type": name.split(",")[0], **values})
        file = export(model, out / "rope.gguf", dtype="float32", tokenizer=False)
        theirs = transformers_logits(model, ids)
        ours = torch.from_numpy(llama.run(file, ids, logits=True, f32_cache=True)["logits"])
        plain = theirs if plain is None else plain
        scale = theirs.std()
        apart = (ours - theirs).abs() / scale
        effect = (theirs - plain).abs().mean() / scale
        rows.append(f"| {name} | {apart.max():.1e} | {apart.mean():.1e} | {effect:.1e} |")
    return "\n".join(rows)


def toy(folder: Path, rope: dict[str, Any]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        rope_parameters={"rope_theta": 10000.0, **rope}, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def transformers_logits(model: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    result: torch.Tensor = loaded(ids).logits[0]
    return result


def real_model(llama: Llama, source: Path, out: Path) -> str:
    from transformers import AutoTokenizer

    base, extended = out / "real-base", out / "real-extended"
    if not base.exists():
        model, tokenizer = unpack(source, base)
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if "proj" in name:
                (m, n), draw = weight.shape, {"generator": generator}
                change = torch.randn(m, 8, **draw) @ torch.randn(8, n, **draw)
                weight.data += change * (0.1 * weight.norm() / change.norm())
        save(model, tokenizer, extended)
    adapter, merged = out / "real-adapter", out / "real-merged"
    common: dict[str, Any] = {"overwrite": True}
    regraft.extract_lora(base, extended, adapter, rank=8, dtype="float32", verify=False, **common)
    regraft.apply_lora(adapter, base, merged, **common)
    tokenizer = AutoTokenizer.from_pretrained(base)
    base_file = export(base, out / "real-base.gguf", dtype="float32")
    lora_file = export(adapter, out / "real-adapter.gguf")
    model_file = export(merged, out / "real-merged.gguf")
    texts = [*TEXTS, Path(argparse.__file__).read_text()[:4000]]
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    same = json.loads(llama.call(op="tokenize", model=base_file, texts=texts)) == plain
    ids = torch.tensor([plain[2][:512]])
    theirs = {"base": transformers_logits(base, ids), "merged": transformers_logits(merged, ids)}
    exact: dict[str, Any] = {"logits": True, "f32_cache": True}
    runs = {
        "base.gguf, float32": ("base", llama.run(base_file, ids, **exact)),
        "base.gguf + adapter.gguf": ("merged", llama.run(base_file, ids, lora=lora_file, **exact)),
        "merged.gguf, float16": ("merged", llama.run(model_file, ids, logits=True)),
    }
    rows = [
        "## SmolLM2-135M-Instruct: base + LoRA in llama.cpp, merged in transformers\n",
        f"A change of rank 8 and 10% of each projection's norm, {ids.shape[1]} tokens of Python. "
        f"llama.cpp's tokenizer gives {'the same' if same else 'OTHER'} ids for "
        f"{sum(map(len, plain))} tokens of text. Differences as a share of the logits' standard "
        "deviation; KL in nats per token.\n",
        "| in llama.cpp | against transformers on | largest | mean | KL | same best token |\n"
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, (reference, result) in runs.items():
        rows.append(f"| {name} | {reference} | {compared(result['logits'], theirs[reference])} |")
    rows.append(
        f"| (transformers, base) | merged | {compared(theirs['base'].numpy(), theirs['merged'])} |"
    )
    return "\n".join(rows)


def unpack(source: Path, folder: Path) -> tuple[Any, Any]:
    """Write the dequantised model of a GGUF file to `folder`; returns it and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf: dict[str, Any] = {"gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **gguf)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **gguf)
    save(model, tokenizer, folder)
    return model, tokenizer


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """A checkpoint of a model whose class refuses `save_pretrained`, since it came from GGUF."""
    tokenizer.save_pretrained(folder)
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def compared(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> str:
    mine = torch.from_numpy(ours)
    apart = (mine - theirs).abs() / theirs.std()
    log = F.log_softmax(theirs.double(), -1)
    kl = (log.exp() * (log - F.log_softmax(mine.double(), -1))).sum(-1).mean()
    same = (mine.argmax(-1) == theirs.argmax(-1)).double().mean()
    return f"{apart.max():.1e} | {apart.mean():.1e} | {abs(kl):.1e} | {same:.1%}"
