"""What is refused, or warned of, before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from evaluated import evaluate, speaker, text_tokenizer
from models import LONG

from regraft.data.generate.grammar import sentences
from regraft.errors import CheckpointError, InputError
from regraft.evaluate.prepare import prepare
from regraft.evaluate.prompts.length import Prompter
from regraft.evaluate.settings import Settings


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


def test_tasks_with_one_question_for_each_text_are_named(tmp_path: Path) -> None:
    folder = str(speaker(tmp_path / "m"))
    settings = Settings(("cwe",), (512,), questions_per_text=4)
    with pytest.raises(InputError, match="--questions-per-text is for needle, latent, icl, notes"):
        prepare([folder], settings, matrix=False)
    with pytest.warns(UserWarning, match="cwe: one question for each text; several have needle"):
        prepare([folder], replace(settings, suites=("cwe", "needle")), matrix=False)
    with pytest.raises(InputError, match="--questions-per-text 0 is too few"):
        prepare([folder], replace(settings, questions_per_text=0), matrix=False)
