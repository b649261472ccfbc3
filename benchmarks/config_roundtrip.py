"""Do transformers 5 and 4.57 read the same RoPE from a config that regraft wrote?

    python benchmarks/config_roundtrip.py [--old-python PATH] [--markdown FILE]

Writes a config.json of every family with `ContextSpec.write_into`, loads each with the running
transformers and with 4.57, and compares theta, context length and the inverse frequencies of the
model's own rotary module, at load and at four times the context length. The control rows are what
`save_pretrained` of transformers 5 leaves behind. Without --old-python a venv with transformers
4.57 is made in a temporary folder; it borrows this interpreter's torch. Exit code 1 when a row
that regraft wrote disagrees.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from rope_configs import LLAMA3, LONG, SHORT

TINY = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 6,  # Gemma 3 has one full-attention layer in six
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "pad_token_id": 0,
}


def model(model_type: str, architecture: str, length: int, **rope: object) -> dict:
    base = {"model_type": model_type, "architectures": [architecture], **TINY}
    return {**base, "max_position_embeddings": length, **rope}


LLAMA = ("llama", "LlamaForCausalLM")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}

# (config in the spelling of its publisher, `--context` text applied before writing, if any)
FAMILIES: dict[str, tuple[dict, str | None]] = {
    "Llama-3, theta": (model(*LLAMA, 8192, rope_theta=500000.0), "theta=283461213,length=256k"),
    "Llama-3 saved by v5": (
        model(*LLAMA, 8192, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        "theta=3580165449,length=1M",
    ),
    "Llama-3.1, llama3": (model(*LLAMA, 131072, rope_theta=500000.0, rope_scaling=LLAMA3), None),
    "Llama-3 to llama3": (
        model(*LLAMA, 8192, rope_theta=500000.0),
        "family=llama3,length=64k",
    ),
    "linear": (
        model(*LLAMA, 16384, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4}),
        None,
    ),
    "dynamic": (
        model(*LLAMA, 4096, rope_theta=10000.0, rope_scaling={"type": "dynamic", "factor": 2.0}),
        None,
    ),
    "Llama-3 to yarn": (model(*LLAMA, 8192, rope_theta=500000.0), "family=yarn,length=64k"),
    "Qwen3, yarn": (
        model("qwen3", "Qwen3ForCausalLM", 131072, rope_theta=1e6, rope_scaling=YARN),
        None,
    ),
    "yarn, all settings": (
        model(
            *LLAMA,
            131072,
            rope_theta=1e6,
            rope_scaling=YARN
            | {"beta_fast": 24.0, "beta_slow": 2.0, "truncate": False}
            | {"mscale": 1.0, "mscale_all_dim": 0.7},
        ),
        None,
    ),
    "longrope (Llama)": (
        model(
            *LLAMA,
            131072,
            rope_theta=10000.0,
            original_max_position_embeddings=4096,
            rope_scaling=LONGROPE | {"factor": 16.0},
        ),
        None,
    ),
    "longrope (Phi-3)": (
        model(
            "phi3",
            "Phi3ForCausalLM",
            131072,
            rope_theta=10000.0,
            original_max_position_embeddings=4096,
            rope_scaling=LONGROPE,
        ),
        None,
    ),
    "Gemma 2": (model("gemma2", "Gemma2ForCausalLM", 8192, rope_theta=10000.0), "theta=1e6"),
    "Mistral": (
        model("mistral", "MistralForCausalLM", 32768, rope_theta=1e6),
        "theta=8e6,length=128k",
    ),
    "Gemma 3, by layer type": (
        model(
            "gemma3_text",
            "Gemma3ForCausalLM",
            131072,
            rope_theta=1e6,
            rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        None,
    ),
    "Gemma 3, silent": (model("gemma3_text", "Gemma3ForCausalLM", 32768), "theta=4e6"),
}
CONTROLS = ("Llama-3, theta", "Llama-3.1, llama3", "Gemma 3, by layer type")

# Runs in either interpreter: for each config, what its transformers makes of it.
READER = """
import json, sys, transformers
from transformers import AutoConfig, AutoModelForCausalLM
import torch

transformers.logging.set_verbosity_error()
result = {"version": transformers.__version__, "configs": {}}
for name, folder in json.load(sys.stdin).items():
    config = AutoConfig.from_pretrained(folder)
    rope = getattr(config, "rope_parameters", None) if transformers.__version__[0] > "4" else None
    rope = (rope or {}).get("full_attention", rope)
    theta = rope["rope_theta"] if rope else config.rope_theta
    length = config.max_position_embeddings
    model = AutoModelForCausalLM.from_config(config).model
    frequencies = {}
    for beyond in (False, True):
        position = torch.tensor([[4 * length if beyond else 1]])
        for path, module in model.named_modules():
            if "RotaryEmbedding" not in type(module).__name__:
                continue
            kinds = getattr(module, "layer_types", [None]) if rope else [None]
            for kind in kinds if isinstance(module.__dict__.get("rope_type"), dict) else [None]:
                extra = {"layer_type": kind} if kind else {}
                module(torch.zeros(1), position, **extra)
                local = kind == "sliding_attention" or path.endswith("_local")
                buffer = getattr(module, f"{kind}_inv_freq" if kind else "inv_freq")
                scale = f"{kind}_attention_scaling" if kind else "attention_scaling"
                key = f"{'sliding' if local else 'main'}{' beyond' if beyond else ''}"
                frequencies[key] = [*buffer.double().tolist(), float(getattr(module, scale))]
    result["configs"][name] = {"theta": theta, "length": length, "frequencies": frequencies}
json.dump(result, sys.stdout)
"""


def read(python: Path, folders: dict[str, str], path: str | None) -> dict:
    """Run READER under `python`; `path` is where it finds torch, if not in its own packages."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    prelude = f"import sys; sys.path.append({path!r})\n" if path else ""
    done = subprocess.run(
        [str(python), "-c", prelude + READER],
        input=json.dumps(folders),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{python} could not read the configs:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def make_old_python(folder: Path) -> Path:
    """A venv with transformers 4.57 and no torch of its own."""
    print("making a venv with transformers 4.57 ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "transformers==4.57.*"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return python


def save_as_transformers_5(folder: Path, config: dict) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    CONFIG_MAPPING[config["model_type"]].from_dict(config).save_pretrained(folder)


def difference(new: dict, old: dict) -> float:
    """Largest relative difference of any frequency or attention factor; inf if one lacks some."""
    if new["frequencies"].keys() != old["frequencies"].keys():
        return float("inf")
    return max(
        abs(a - b) / max(abs(a), 1e-30)
        for key, values in new["frequencies"].items()
        for a, b in zip(values, old["frequencies"][key], strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old-python", type=Path, help="interpreter with transformers 4.57")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--date", default="", help="date to state in the markdown file")
    arguments = parser.parse_args()

    import torch

    from regraft.rope import ContextSpec, parse_context

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders: dict[str, str] = {}
        specs: dict[str, ContextSpec] = {}
        for name, (config, text) in FAMILIES.items():
            spec = ContextSpec.from_config(config)
            spec = parse_context(text, spec) if text else spec
            written = spec.write_into(config)
            folder = root / f"config{len(folders)}"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(written, indent=2))
            folders[name], specs[name] = str(folder), spec
            if name in CONTROLS:
                folder = root / f"control{len(folders)}"
                folder.mkdir()
                save_as_transformers_5(folder, written)
                folders[f"{name} (control)"] = str(folder)
        old_python = arguments.old_python or make_old_python(root / "venv")
        packages = str(Path(torch.__file__).parents[1])
        new = read(Path(sys.executable), folders, None)
        old = read(old_python, folders, packages)

    head = f"| family | context | theta read by {new['version']} | theta read by {old['version']} "
    head += "| max_position | inv_freq max relative difference | verdict |"
    lines, failed = [head, "|---|---|---|---|---|---|---|"], False
    for control in (False, True):
        for name in (n for n in folders if n.endswith(" (control)") == control):
            a, b = new["configs"][name], old["configs"][name]
            spec = specs[name.removesuffix(" (control)")]
            worst = difference(a, b)
            agree = a["theta"] == b["theta"] == spec.theta and worst < 1e-6
            agree = agree and a["length"] == b["length"] == spec.max_position_embeddings
            failed |= not (agree or control)
            verdict = "agree" if agree else "the hazard" if control else "DISAGREE"
            length = "/".join(str(n) for n in sorted({a["length"], b["length"]}))
            row = (name, spec.describe(), f"{a['theta']:.15g}", f"{b['theta']:.15g}")
            lines.append(f"| {' | '.join(row)} | {length} | {worst:.1e} | {verdict} |")
    table = "\n".join(lines)
    print(table)
    if arguments.markdown:
        made = f"{arguments.date}, " if arguments.date else ""
        arguments.markdown.write_text(
            "# RoPE configs, read by transformers 5 and 4.57\n\n"
            f"`benchmarks/config_roundtrip.py`, {made}Python {sys.version.split()[0]}, "
            f"torch {torch.__version__}, transformers {new['version']} and {old['version']}.\n\n"
            "Every config was written by `ContextSpec.write_into` and loaded by both versions;\n"
            "the difference is over the inverse frequencies and attention factor of the model's\n"
            "own rotary module, at load and at four times the context length. Control rows are\n"
            "the same contexts saved by plain `save_pretrained` of transformers 5.\n\n"
            f"{table}\n"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
