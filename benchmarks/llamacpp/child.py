"""llama.cpp in a process of its own, whose Python has llama-cpp-python and needs no regraft.

    python benchmarks/llamacpp/child.py JOB.json    # {"op": "run" | "quantize" | ..., ...}

run: {"model", "lora", "n_ctx", "rope_freq_base", "f32_cache", "rows": [[id]], "save"} evaluates
each row and writes to the file `save` (.npz) the NLL of every id but the first and the likeliest
next id at each position, with "logits": true also all logits of the first row. quantize: {"source",
"target", "type"}. tokenize: {"model", "texts"} prints the ids as JSON. serve: {"model",
"alias", "n_ctx", "port"} is llama-cpp-python's server with a cache in float32.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as bindings
import numpy as np

TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}  # llama_ftype
F32, F16 = 0, 1  # ggml_type
_defaults = bindings.llama_model_default_params


def without_repacking() -> Any:
    """llama.cpp's defaults, but no repacked weights: AMX is an illegal instruction in sandboxes
    that hide it from the process and not from cpuid."""
    parameters = _defaults()
    parameters.use_extra_bufts = False
    return parameters


def load(job: dict[str, Any], **more: Any) -> Any:
    bindings.llama_model_default_params = without_repacking
    return llama_cpp.Llama(
        job["model"], verbose=bool(os.environ.get("VERBOSE")), n_threads=os.cpu_count(), **more
    )


def run(job: dict[str, Any]) -> None:
    cache = F32 if job.get("f32_cache") else F16
    llm = load(
        job, lora_path=job.get("lora"), n_ctx=job["n_ctx"], n_batch=512, logits_all=True,
        rope_freq_base=job.get("rope_freq_base") or 0.0, type_k=cache, type_v=cache,
    )  # fmt: skip
    nll, best, first = [], [], None
    for row in job["rows"]:
        llm.reset()
        llm.eval(row)
        logits = np.asarray(llm.scores[: len(row)], dtype=np.float32)
        if first is None and job.get("logits"):
            first = logits.copy()
        top = logits[:-1].max(-1, keepdims=True)
        sums = np.log(np.exp((logits[:-1] - top).astype(np.float64)).sum(-1)) + top[:, 0]
        nll.append(sums - logits[np.arange(len(row) - 1), row[1:]])
        best.append(logits.argmax(-1))
    arrays = {"nll": np.array(nll), "best": np.array(best)}
    np.savez(job["save"], **arrays, **({} if first is None else {"logits": first}))


def quantize(job: dict[str, Any]) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[job["type"]]
    parameters.nthread = os.cpu_count()
    code = llama_cpp.llama_model_quantize(
        job["source"].encode(), job["target"].encode(), ctypes.byref(parameters)
    )
    if code:
        sys.exit(f"llama_model_quantize returned {code}")


def tokenize(job: dict[str, Any]) -> None:
    llm = load(job, vocab_only=True)
    print(json.dumps([llm.tokenize(text.encode(), False, True) for text in job["texts"]]))


def serve(job: dict[str, Any]) -> None:
    import uvicorn
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    bindings.llama_model_default_params = without_repacking
    # one thread: several spin while they wait for each other, which is slow on a busy machine
    model = ModelSettings(
        model=job["model"], model_alias=job["alias"], n_ctx=job["n_ctx"], logits_all=True,
        type_k=F32, type_v=F32, n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip
    app = create_app(server_settings=ServerSettings(), model_settings=[model])
    uvicorn.run(app, host="127.0.0.1", port=job["port"], log_level="warning")


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    ops = {"run": run, "quantize": quantize, "tokenize": tokenize, "serve": serve}
    ops[job["op"]](job)
