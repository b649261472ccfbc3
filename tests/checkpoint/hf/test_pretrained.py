"""The gate: what is loaded, what never is, and the sentence for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import toy
from models import LLAMA, save, weights

import regraft
from regraft.checkpoint.config import explain_errors, load_config, meta_model
from regraft.checkpoint.finite import is_finite
from regraft.checkpoint.hf.pretrained import load_model
from regraft.checkpoint.hf.tokenizer import load_tokenizer
from regraft.checkpoint.read.source import Checkpoint
from regraft.errors import CheckpointError, InputError, LineageError, OutputError

Q = "model.layers.0.self_attn.q_proj.weight"


def loaded(folder: Path, **options: Any) -> Any:
    with Checkpoint.open(folder) as checkpoint:
        return load_model(checkpoint, **options)


def refusal(folder: Path) -> str:
    """The sentence with which a model is refused."""
    with pytest.raises(CheckpointError) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_nothing_else_in_the_package_loads_with_transformers() -> None:
    root = Path(regraft.__file__).parent
    gates = {f"checkpoint/{name}.py" for name in ("config", "hf/pretrained", "hf/tokenizer")}
    gates |= {"checkpoint/read/find.py", "adapters/serving.py"}  # in commands for the user to run
    gates |= {"data/build/scoring/embedding.py"}  # model2vec's, of a folder that is checked
    gates |= {"data/build/scoring/embedding.py"}  # model2vec's own loader of a local folder
    calls = re.compile(
        r"\.from_pretrained\(|\bTokenizer\.from_|\.from_dict\(|get_class_from_dynamic_module"
        r"|\b(?:AutoModel|AutoConfig|AutoTokenizer|\w*CONFIG_MAPPING|PeftModel|PeftConfig)\b"
    )
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if calls.search(line.split("#")[0])
    }
    assert users <= gates


def test_the_weights_are_those_of_the_checkpoint_and_no_others(tmp_path: Path) -> None:
    state = weights(LLAMA)
    folder = save(tmp_path / "m", LLAMA, state)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save(other, folder / "pytorch_model.bin")
    zeros = save(tmp_path / "zeros", LLAMA, other)
    (zeros / "model.safetensors").rename(folder / "zeros.bin.safetensors.part")
    edit(folder / "config.json", transformers_weights="zeros.bin.safetensors.part")
    model = loaded(folder)
    assert torch.equal(model.state_dict()[Q], state[Q])


def test_an_adapter_beside_a_model_is_not_applied(tmp_path: Path) -> None:
    from peft_folders import adapter

    state = weights(LLAMA)
    folder = save(tmp_path / "m", LLAMA, state)
    adapter(folder)
    model = loaded(folder)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert torch.equal(model.state_dict()[Q], state[Q])


def test_the_code_of_a_tokenizer_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy(tmp_path / "m")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass T: pass\n")
    auto = {"AutoTokenizer": ["evil.T", "evil.T"], "AutoConfig": "evil.T"}
    edit(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="T")
    edit(folder / "config.json", auto_map=auto)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with Checkpoint.open(folder) as checkpoint:
        assert load_tokenizer(checkpoint).get_vocab()
        load_model(checkpoint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers: 1000000000"),
        ({"a": {"b": {"num_hidden_layers": 10**9}}}, "num_hidden_layers: 1000000000"),
        ({"num_labels": 10**9}, "num_labels: 1000000000"),
        ({"hidden_size": 128}, r"shape \[80, 64\], and config.json makes it \[80, 128\]"),
        ({"vocab_size": 10**9}, "shape"),
        ({"num_hidden_layers": 3}, "lacks"),
        ({"num_hidden_layers": 7}, "describes 226,240 weights and 72,000 are stored"),
        ({"num_attention_heads": "four"}, "refuses config.json.*num_attention_heads"),
        ({"num_attention_heads": None}, "refuses config.json"),
        ({"model_type": ["llama"]}, "states no model_type"),
        ({"model_type": "lla\0ma"}, "does not know model_type"),
        ({"rope_parameters": [1]}, "config.json"),
        ({"hidden_act": "nosuch"}, "no causal language model.*nosuch"),
    ],
)
def test_a_config_that_is_not_of_these_tensors_is_refused_before_anything_is_built(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = save(tmp_path / "m", LLAMA, weights(LLAMA))
    edit(folder / "config.json", **change)
    assert re.search(words, refusal(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.fill_(float("nan")), f"'{Q}' of .* holds NaN"),
        (lambda w: torch.cat([w[:-1], w[-1:] * float("inf")]), f"'{Q}' of .* holds NaN"),
        (lambda w: w.to(torch.int32), f"'{Q}' of .* is int32"),
        (lambda w: None, f"lacks 1 tensors.*{Q}"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    from safetensors.torch import save_file

    state = weights(LLAMA)
    folder = save(tmp_path / "m", LLAMA, state)
    changed = change(state.pop(Q).clone())
    state |= {} if changed is None else {Q: changed}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert re.search(words, refusal(folder))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", '{"version": "1.0"}', "tokenizer.json is refused by the tokenizers"),
        ("tokenizer.json", "[1]", "tokenizer.json is not a JSON object"),
        ("tokenizer.json", '{"a": ' * 5000, "nested too deep"),
        ("tokenizer_config.json", "3", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", '{"eos_token": [1]}', "cannot be built from"),
        ("tokenizer_config.json", '{"model_max_length": "many"}', "cannot be built from"),
        ("special_tokens_map.json", '"</s>"', "special_tokens_map.json is not a JSON object"),
        ("special_tokens_map.json", '{"eos_token": {"content": "x", "lstrip": 3}}', "built from"),
    ],
)
def test_a_broken_tokenizer_is_refused_by_the_name_of_its_file(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    folder = toy(tmp_path / "m")
    (folder / name).write_text(text)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError) as caught:
        load_tokenizer(checkpoint)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["3", "[]", '{"eos_token_id": "a"}', '{"eos_token_id": -1}', '{"eos_token_id": [[1]]}',
     '{"eos_token_id": true}', '{"eos_token_id": 99999999999999999999}', '{"eos_token_id": {}}'],
)  # fmt: skip
def test_a_broken_generation_config_is_refused(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "m", LLAMA, weights(LLAMA))
    (folder / "generation_config.json").write_text(text)
    assert "generation_config.json" in refusal(folder)


def test_the_stop_tokens_are_those_of_the_generation_config_else_of_the_config(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path / "m", {**LLAMA, "eos_token_id": 5}, weights(LLAMA))
    (folder / "generation_config.json").unlink()
    assert loaded(folder).generation_config.eos_token_id == [5]
    settings = {"eos_token_id": [7, 9], "num_beams": 4, "max_new_tokens": -1, "compile_config": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    loaded_settings = loaded(folder).generation_config.to_diff_dict()
    loaded_settings.pop("transformers_version")
    assert loaded_settings == {"eos_token_id": [7, 9]}


def test_our_own_errors_and_full_memory_need_no_explanation() -> None:
    for error in (LineageError("Strangers."), InputError("Too few."), OutputError("Full disk."),
                  torch.OutOfMemoryError("GPU"), MemoryError("host")):  # fmt: skip
        with pytest.raises(type(error)) as caught, explain_errors("It failed", "mend it"):
            raise error
        assert caught.value is error
    with (
        pytest.raises(CheckpointError, match=r"^It failed \(KeyError: 1\); mend it\.$"),
        explain_errors("It failed", "mend it"),
    ):
        raise KeyError(1)


def test_dtype_is_the_configs_or_what_is_asked_for(tmp_path: Path) -> None:
    config = {**LLAMA, "torch_dtype": "bfloat16"}
    folder = save(tmp_path / "m", config, weights(LLAMA), dtype=torch.bfloat16)
    assert loaded(folder).dtype == torch.bfloat16
    assert loaded(folder, dtype=torch.float32).dtype == torch.float32


def test_a_name_of_a_kernel_is_not_downloaded(tmp_path: Path) -> None:
    raw = {**LLAMA, "_attn_implementation": "someone/kernel", "attn_implementation": "someone/k"}
    assert "kernel" not in str(load_config(raw).to_dict())
    assert meta_model(raw).config._attn_implementation == "sdpa"


def test_finite_over_all_dtypes() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        largest = torch.finfo(dtype).max  # their sum is infinite
        assert is_finite(torch.full((1000,), largest, dtype=torch.float64).to(dtype))
        assert is_finite(torch.full((1000,), -largest, dtype=torch.float64).to(dtype))
        assert is_finite(torch.empty(0, dtype=dtype))
        bad = torch.ones(1000)
        bad[700] = float("nan")
        assert not is_finite(bad.to(dtype))
    for value in (float("inf"), -float("inf")):
        assert not is_finite(torch.tensor([1.0, value]))
    assert is_finite(torch.arange(3))


def test_a_model_type_whose_default_transformers_cannot_build_is_one_sentence(
    tmp_path: Path,
) -> None:
    """`nougat` in transformers 5.23 needs the configs of its parts."""
    folder = save(tmp_path / "m", LLAMA, weights(LLAMA))
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nougat"}))
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError) as caught:
        _ = checkpoint.tied
    assert "refuses config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
