"""Broken or odd models, tokenizers and settings: refused in a sentence, or counted rightly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import evaluate, text_tokenizer, toy
from models import LLAMA, LONG, save, weights
from typer.testing import CliRunner

from regraft.cli import app
from regraft.data.generate.grammar import sentences
from regraft.errors import CheckpointError, InputError, RegraftError
from regraft.evaluate.answers import cache, drift
from regraft.evaluate.answers.model import Source
from regraft.evaluate.cost import plan, seconds, tokens
from regraft.evaluate.measures import plain_texts
from regraft.evaluate.prepare import prepare
from regraft.evaluate.prompts import template
from regraft.evaluate.prompts.haystack import Grammar
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.result import Drift
from regraft.evaluate.settings import Settings
from regraft.evaluate.tasks import Kit, listing
from regraft.evaluate.tasks.needle import answer_tokens

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {**LLAMA, "vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1}
PROJECTION = "model.layers.0.mlp.down_proj.weight"


def speaker(folder: Path, **config: Any) -> Path:
    """A random Llama whose tokenizer knows every text."""
    save(folder, CONFIG | config, weights(CONFIG | config))
    text_tokenizer().save_pretrained(folder)
    return folder


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
    held = weights(CONFIG)
    changed = change(held.pop(PROJECTION))
    save(tmp_path / "m", CONFIG, held if changed is None else {**held, PROJECTION: changed})
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
    held = weights(CONFIG)
    held.setdefault("lm_head.weight", held["model.embed_tokens.weight"].clone())
    spoil(held)
    save(tmp_path / "m", CONFIG, held)
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
    held = weights(CONFIG)
    held["model.norm.weight"] *= 1e6
    held.setdefault("lm_head.weight", held["model.embed_tokens.weight"].clone())
    save(tmp_path / "m", CONFIG, held)
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
    held = weights(CONFIG)
    small = Source("a", str(save(tmp_path / "a", CONFIG, held))).load(CPU)
    wide = {
        name: torch.cat([tensor, tensor[:8]]) if len(tensor) == 600 else tensor
        for name, tensor in held.items()
    }
    large = Source("b", str(save(tmp_path / "b", CONFIG | {"vocab_size": 608}, wide))).load(CPU)
    rows = [[0, 17, 230, 41, 599]]
    for one, other in ((small, large), (large, small)):
        result = drift.measure(one, drift.Reference(other, rows))
        assert result == Drift(kl=0.0, top1=1.0, cosine=1.0, positions=5)


def test_tokens_that_a_model_lacks_are_refused_before_it_is_loaded(tmp_path: Path) -> None:
    first, second = speaker(tmp_path / "a", vocab_size=616), speaker(tmp_path / "b")
    tokenizer = text_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "<s><turn>{{ messages[0].content }}"
    tokenizer.save_pretrained(first)
    settings = Settings(("needle",), (512,), chat=True)
    with pytest.raises(InputError, match=r"b has 600 tokens.*token 600.*leave --chat out"):
        prepare([str(first), str(second)], settings, matrix=False)
    prepare([str(first)], settings, matrix=False)
    tokenizer.chat_template = "{{ raise_exception('a system message comes first') }}"
    with pytest.raises(
        InputError, match=r"template does not accept a single question.*comes first"
    ):
        Prompter(tokenizer, chat=True)


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


@pytest.mark.filterwarnings("ignore:5 needle items")
def test_names_of_models_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = speaker(tmp_path / "m")
    settings = Settings(("needle",), (512,), items=5)
    with pytest.raises(InputError, match="'a b' and 'a-b' are too similar"):
        prepare([f"a b={folder}", f"a-b={folder}"], settings, matrix=False)
    with pytest.raises(InputError, match=r"cannot be '\.\.'"):
        prepare([f"..={folder}"], settings, matrix=False)
    monkeypatch.chdir(folder)
    assert [source.name for source in prepare(["."], settings, matrix=False).sources] == ["m"]


def test_a_model_whose_config_contradicts_itself_is_named(tmp_path: Path) -> None:
    good, bad = (speaker(tmp_path / name, **LONG) for name in ("good", "bad"))
    config = json.loads((bad / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 7.0}
    (bad / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"/bad: config\.json contradicts itself"):
        prepare([str(good), str(bad)], Settings(("needle",), (512,), items=5), matrix=False)


def test_what_is_too_little_is_said(tmp_path: Path) -> None:
    folder = str(speaker(tmp_path / "m"))
    with pytest.raises(InputError, match="need two tokens"):
        evaluate([folder], tmp_path / "out", suite="perplexity", lengths="1")
    with pytest.warns(UserWarning, match="2 needle items cover only the first 2 of 5 depths"):
        prepare([folder], Settings(("needle",), (512,), items=2), matrix=False)


@pytest.mark.parametrize("suite", ["needle", "perplexity", "drift"])
def test_a_haystack_shorter_than_the_prompts_is_refused_before_a_model_is_loaded(
    tmp_path: Path, suite: str
) -> None:
    folder = str(speaker(tmp_path / "m", max_position_embeddings=1024))
    haystack = tmp_path / "short.txt"
    haystack.write_text("".join(islice(sentences("haystack"), 10)))
    settings = Settings((suite,), (1024,), items=5, haystack=str(haystack))
    with pytest.raises(InputError, match=r"text of short\.txt is too short: 10 sentences"):
        prepare([folder], settings, matrix=False)
    haystack.write_text("".join(islice(sentences("haystack"), 200)))
    assert prepare([folder], settings, matrix=False).lengths == [1024]


def test_a_haystack_of_few_sentences_is_enough_for_short_prompts(tmp_path: Path) -> None:
    folder = str(speaker(tmp_path / "m"))
    haystack = tmp_path / "short.txt"
    haystack.write_text("".join(islice(sentences("haystack"), 30)))
    settings = Settings(("needle",), (256,), items=5, haystack=str(haystack))
    assert prepare([folder], settings, matrix=False).lengths == [256]


def test_several_needles_have_room_for_all_their_digits() -> None:
    for count in (1, 4, 10):
        answer, _ = listing(["1234567"] * count)
        single = sum(c.isdigit() or c == "," for c in answer) + answer.count(" ")  # tokens
        assert single <= answer_tokens(count)


def test_a_plan_counts_items_tokens_and_time(tmp_path: Path) -> None:
    folder = str(speaker(tmp_path / "m", **LONG))
    settings = Settings(("needle", "cwe", "perplexity"), (1024, 2048), items=10, needles=2, texts=3)
    work = prepare([folder], settings, matrix=False)
    read, written = tokens(work)
    assert read[1024] == 2 * 20 * 1024
    assert read[2048] == 2 * 20 * 2048 + 3 * 2048
    assert read[32] == 3 * 2048 // 2 * 5  # a window of 32 for every 8 tokens of the second half
    assert written == 2 * 20 * 120  # of cwe; needles are only scored
    planned = plan(work, CPU)
    assert planned["items"] == 40
    assert planned["tokens to read"] == sum(read.values())
    assert planned["seconds"] > 0
    more = prepare([folder, f"b={folder}"], settings, matrix=False)
    assert seconds(more, CPU) > 0
    assert plan(more, CPU)["items"] == 80


def test_a_plan_counts_a_shared_text_once_and_says_what_its_cache_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(speaker(tmp_path / "m", **LONG))
    settings = Settings(("needle",), (1024,), items=10, questions_per_text=4)
    work = prepare([folder], settings, matrix=False)
    assert tokens(work)[0] == {1024: 2 * (3 * 1024 + 10 * 32)}
    assert tokens(work, lambda length: False)[0] == {1024: 2 * 10 * 1024}
    assert "kB" in str(plan(work, CPU)["cache of a text, at most"])
    monkeypatch.setattr(cache, "free_memory", lambda device: 100.0)
    assert "one question at a time" in str(plan(work, CPU)["cache of a text, at most"])


def test_tasks_with_one_question_for_each_text_are_named(tmp_path: Path) -> None:
    folder = str(speaker(tmp_path / "m"))
    settings = Settings(("cwe",), (512,), questions_per_text=4)
    with pytest.raises(InputError, match="--questions-per-text is for needle, latent, icl, notes"):
        prepare([folder], settings, matrix=False)
    with pytest.warns(UserWarning, match="cwe: one question for each text; several have needle"):
        prepare([folder], replace(settings, suites=("cwe", "needle")), matrix=False)
    with pytest.raises(InputError, match="--questions-per-text 0 is too few"):
        prepare([folder], replace(settings, questions_per_text=0), matrix=False)


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
