"""Broken or odd models and tokenizers: refused in a sentence, or counted rightly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluated import SPEAKER, evaluate, speaker, text_tokenizer, toy
from models import save, weights
from typer.testing import CliRunner

from regraft.cli import app
from regraft.errors import CheckpointError, InputError, RegraftError
from regraft.evaluate.answers import drift
from regraft.evaluate.answers.model import Source
from regraft.evaluate.measures import plain_texts
from regraft.evaluate.prompts import template
from regraft.evaluate.prompts.haystack import Grammar
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import Drift
from regraft.evaluate.tasks import Kit, listing
from regraft.evaluate.tasks.needle import answer_tokens

CPU = torch.device("cpu")
PROJECTION = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * float("nan"), rf"{PROJECTION}.*holds NaN"),
        (lambda tensor: tensor[:-1].contiguous(), rf"{PROJECTION}.*shape"),
        (lambda tensor: None, rf"lacks 1 tensors.*{PROJECTION}"),
    ],
)
def test_broken_weights_are_not_examined(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor | None], message: str
) -> None:
    held = weights(SPEAKER)
    changed = change(held.pop(PROJECTION))
    save(tmp_path / "m", SPEAKER, held if changed is None else {**held, PROJECTION: changed})
    with pytest.raises(RegraftError, match=message) as caught:
        Source("m", str(tmp_path / "m")).load(CPU)
    assert isinstance(caught.value, CheckpointError | InputError)


def spoil_embedding(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][450] = float("inf")  # of a token that may not be read


def spoil_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"][20] = float("nan")


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] *= 1e30
    tensors["lm_head.weight"][30:] *= 1e30  # finite weights, infinite logits


@pytest.mark.parametrize("spoil", [spoil_embedding, spoil_head, overflow])
def test_a_model_that_computes_no_numbers_is_refused_in_a_sentence(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    held = weights(SPEAKER)
    held.setdefault("lm_head.weight", held["model.embed_tokens.weight"].clone())
    spoil(held)
    save(tmp_path / "m", SPEAKER, held)
    text_tokenizer().save_pretrained(tmp_path / "m")
    command = ["evaluate", str(tmp_path / "m"), "-o", str(tmp_path / "out"), "--json"]
    command += ["--lengths", "256", "--items", "2", "--texts", "1"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2, run.output
    assert "Traceback" not in run.output
    assert "NaN or infinity" in run.stderr
    assert not (tmp_path / "out").exists()


def test_numbers_that_overflow_at_a_length_are_refused_there(tmp_path: Path) -> None:
    model = Source("m", str(speaker(tmp_path / "m"))).load(CPU)
    model.model.lm_head.weight.data[7] = float("nan")  # as activations may become
    with pytest.raises(InputError, match="m computes NaN or infinity on a prompt"):
        model.score([[0, 5, 9]], [[1, 2]])
    with pytest.raises(InputError, match="m computes NaN while it generates"):
        model.generate([[0, 5, 9]], 2)
    with pytest.raises(InputError, match="it has no drift"):
        drift.measure(model, drift.Reference(model, [[0, 5, 9]]))


def test_a_perplexity_that_no_float_holds_is_none_and_the_report_is_made(tmp_path: Path) -> None:
    held = weights(SPEAKER)
    held["model.norm.weight"] *= 1e6
    held.setdefault("lm_head.weight", held["model.embed_tokens.weight"].clone())
    save(tmp_path / "m", SPEAKER, held)
    text_tokenizer().save_pretrained(tmp_path / "m")
    out = tmp_path / "out"
    evaluate([str(tmp_path / "m")], out, suite="perplexity", lengths="256", texts=1)

    def refuse(name: str) -> float:
        raise AssertionError(name)

    result = json.loads((out / "result.json").read_text(), parse_constant=refuse)
    assert result["measures"]["m"]["perplexity"]["mean"] > 700
    assert result["measures"]["m"]["perplexity"]["perplexity"] is None


def test_an_answer_does_not_depend_on_who_shares_its_batch(tmp_path: Path) -> None:
    model = Source("m", str(toy(tmp_path / "m"))).load(CPU)
    prompts = [[1, 5, 9, 40], [1, 7, 30, 8]]
    first, second = model.generate(prompts, 6)
    # the first answer ends early, and the second goes on
    stop = next(token for token in first if token not in second)
    model.model.generation_config.eos_token_id = [stop]
    until = first[: first.index(stop)]
    assert model.generate(prompts, 6) == [until, second]
    assert model.generate(prompts[:1], 6) == [until]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"repetition_penalty": 9.0, "min_new_tokens": 6},
        {"max_length": 2, "max_new_tokens": -1},
        {"cache_implementation": "static", "compile_config": 3},
        {"suppress_tokens": "a", "bad_words_ids": [[1]], "forced_bos_token_id": "a"},
        {"stop_strings": ["a"], "guidance_scale": "a", "penalty_alpha": 0.6, "top_k": "a"},
        {"bos_token_id": "a", "use_cache": "a", "num_return_sequences": 7, "return_dict": [1]},
    ],
)
def test_greedy_text_does_not_depend_on_the_authors_generation_settings(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = toy(tmp_path / "m")
    (folder / "generation_config.json").unlink(missing_ok=True)
    plain = Source("m", str(folder)).load(CPU).generate([[1, 5, 9, 40]], 6)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert Source("m", str(folder)).load(CPU).generate([[1, 5, 9, 40]], 6) == plain
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_beams": 3, "max_length": 5}))
    assert Source("m", str(folder)).load(CPU).generate([[1, 5, 9, 40]], 6) == plain


def test_drift_is_over_the_tokens_that_both_models_have(tmp_path: Path) -> None:
    held = weights(SPEAKER)
    small = Source("a", str(save(tmp_path / "a", SPEAKER, held))).load(CPU)
    wide = {
        name: torch.cat([tensor, tensor[:8]]) if len(tensor) == 600 else tensor
        for name, tensor in held.items()
    }
    large = Source("b", str(save(tmp_path / "b", SPEAKER | {"vocab_size": 608}, wide))).load(CPU)
    rows = [[0, 17, 230, 41, 599]]
    for one, other in ((small, large), (large, small)):
        result = drift.measure(one, drift.Reference(other, rows))
        assert result == Drift(kl=0.0, top1=1.0, cosine=1.0, positions=5)


def test_a_chat_template_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "LIMIT", 0.3)
    tokenizer = text_tokenizer()
    tokenizer.chat_template = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(InputError, match=r"runs for more than 0\.3 s on one prompt"):
        Prompter(tokenizer, chat=True)
    # only on some questions
    tokenizer.chat_template = (
        "{% if messages[0].content %}" + tokenizer.chat_template + "{% endif %}"
    )
    with pytest.raises(InputError, match="leave --chat out"):
        Prompter(tokenizer, chat=True).wrap("Who?")
    for broken in ("{{ none.field.name }}", "{{ 1 / 0 }}", "{{ range(10 ** 10) }}", "{% if %}"):
        tokenizer.chat_template = broken
        with pytest.raises(InputError, match="does not accept a single question") as caught:
            Prompter(tokenizer, chat=True)
        assert "\n" not in str(caught.value)


def test_plain_texts_begin_as_texts_do_also_beside_chat_prompts() -> None:
    tokenizer = text_tokenizer()
    tokenizer.chat_template = "<s>[user] {{ messages[0].content }} [model]"
    (ids,) = plain_texts(Kit(Prompter(tokenizer, chat=True), Grammar()), 64, 1, seed=0)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_several_needles_have_room_for_all_their_digits() -> None:
    for count in (1, 4, 10):
        answer, _ = listing(["1234567"] * count)
        single = sum(c.isdigit() or c == "," for c in answer) + answer.count(" ")  # tokens
        assert single <= answer_tokens(count)


def test_a_token_without_a_row_in_the_embedding_is_refused(tmp_path: Path) -> None:
    model = Source("m", str(speaker(tmp_path / "m"))).load(CPU)
    words = r"m has 600 rows in its embedding, and its tokenizer gives token 600;"
    with pytest.raises(InputError, match=words):
        model.score([[0, 5], [0, 600, 5]], [[1], [1]])
    with pytest.raises(InputError, match=words):
        model.branches([[0, 5, 600], [0, 5, 7]], [[2], [2]])
    with pytest.raises(InputError, match=words):
        model.generate([[0, 5, 600]], 2)
    with pytest.raises(InputError, match=words):
        model.rows([[600]])
    model.rows([[599]])
