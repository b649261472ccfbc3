"""`long_dependency` scores, keeps and drops documents by context gain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from built import documents, run_step
from evaluated import toy
from models import LLAMA, QWEN2, save

from regraft.data.build.document import Document, Message
from regraft.data.build.scoring.attention_distance import standard_scores
from regraft.data.build.scoring.causal_scorer import CausalScorer
from regraft.data.build.steps.long_dependency import LongDependency
from regraft.data.toy_language import WORDS
from regraft.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy(tmp_path_factory.mktemp("scorer"), seed=3))


@pytest.fixture(autouse=True, scope="module")
def _loaded_once(model):
    scorer = CausalScorer.open(model, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalScorer, "open", lambda location, device: scorer)
        yield


@pytest.fixture(scope="module")
def texts():
    return documents(*(" ".join(WORDS[i : i + 40 + i]) for i in range(3, 9)))


def step(model, **keys):
    return LongDependency.model_validate({"model": model, "windows": [8, 16], **keys})


def test_every_document_has_the_scores_of_each_window(model, texts):
    result, statistics = run_step(step(model), texts)
    assert [one.text for one in result] == [one.text for one in texts]
    names = {f"long_dependency.{name}" for name in ("gain_8", "gain_16", "key", "copied")}
    assert all(set(one.scores) == names for one in result)
    assert statistics.scores["long_dependency.gain_8"].number == len(texts)


def test_the_best_share_and_a_threshold_keep_the_highest_gains(model, texts):
    scored, _ = run_step(step(model), texts)
    gains = {one.id: one.scores["long_dependency.gain_16"] for one in scored}
    best = sorted(gains, key=gains.__getitem__, reverse=True)[:3]
    half, statistics = run_step(step(model, share=0.5), texts)
    assert {one.id for one in half} == set(best)
    assert [one.id for one in half] == sorted(best)
    assert statistics.dropped == {"below the best 0.5": 3}
    above, statistics = run_step(step(model, least=gains[best[2]]), texts)
    assert {one.id for one in above} == set(best)
    assert sum(statistics.dropped.values()) == 3


def test_samples_that_the_last_tokens_answer_are_dropped(model):
    text = " ".join(WORDS[3:60]) + " otter"
    known = Document(text, "0", "a", metadata={"reply": "otter"})
    chat = Document(text, "1", "a", messages=(Message("assistant", "otter"),))
    without = Document(text, "2", "a")
    # a random model gives no word an NLL below 1 or above 20
    result, statistics = run_step(step(model, answer="reply", answered=0.1), [known, without])
    assert [one.id for one in result] == ["0"]
    scores = result[0].scores
    difference = scores["long_dependency.answer_nll_last"] - scores["long_dependency.answer_nll"]
    assert scores["long_dependency.answer_8"] == pytest.approx(difference, abs=1e-4)
    assert statistics.dropped == {"no answer after a text within the model's context": 1}
    result, statistics = run_step(step(model, answer="messages", answered=20), [chat])
    assert (result, statistics.dropped) == ([], {"answered by the last 8 tokens": 1})


def test_a_window_larger_than_half_the_models_context_is_refused(model):
    step(model).check()
    with pytest.raises(InputError, match="reads 256 tokens at once, and a window of 200"):
        step(model, windows=[200]).check()
    with pytest.raises(InputError, match="reads 256 tokens at once, and a window of 200"):
        step(model, windows=[200], context=1000).check()  # which the model does not read


def test_segments_are_scored_by_a_sample_that_the_document_decides(model, texts):
    settings = {"model": model, "measure": "lds", "segment": 8, "pairs": 3}
    scored, statistics = run_step(LongDependency.model_validate(settings), texts)
    assert all(
        set(one.scores) == {f"long_dependency.{n}" for n in ("lds", "strong")} for one in scored
    )
    again, _ = run_step(LongDependency.model_validate(settings), texts[2:])
    assert [one.scores for one in again] == [one.scores for one in scored[2:]]
    assert statistics.scores["long_dependency.lds"].number == len(texts)
    with pytest.raises(InputError, match="a pair of segments has 256 and a token before them"):
        LongDependency.model_validate({**settings, "segment": 128}).check()
    with pytest.raises(ValueError, match="give 2 or more"):
        LongDependency.model_validate({**settings, "segment": 1})


def test_attention_is_compared_within_the_source(model, texts):
    whole = LongDependency.model_validate({"model": model, "measure": "longattn", "context": 40})
    assert not whole.independent
    scored, _ = run_step(whole, texts)
    best = max(scored, key=lambda one: one.scores["long_dependency.longattn"])
    table = np.array(
        [[one.scores[f"long_dependency.{name}"] for name in ("strength", "variance")]
         for one in scored]
    )  # fmt: skip
    expected = pytest.approx(standard_scores(table), abs=1e-3)  # of scores with six digits
    assert [one.scores["long_dependency.longattn"] for one in scored] == expected
    first, statistics = run_step(whole.model_copy(update={"share": 1 / 6}), texts)
    assert [one.id for one in first] == [best.id]
    assert sum(statistics.dropped.values()) == 5
    with pytest.raises(InputError, match="within 8 tokens"):
        whole.model_copy(update={"context": 8}).check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, "attends to 64 tokens at most"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention"],
          "use_sliding_window": True, "sliding_window": 64}, "attends to 64 tokens at most"),
        ({"model_type": "llama4_text", "attention_chunk_size": 64}, "attends to 64 tokens at most"),
        ({"model_type": "qwen3_next", "full_attention_interval": 2}, "of type linear_attention"),
    ],
    ids=["mistral", "qwen2", "llama4", "qwen3_next"],
)  # fmt: skip
def test_a_first_layer_without_full_attention_is_refused_by_the_config(tmp_path, config, message):
    tensors = {"a": torch.zeros(1), "b": torch.zeros(1)}
    save(tmp_path, {**LLAMA, **config}, tensors)
    whole = LongDependency.model_validate({"model": str(tmp_path), "measure": "longattn"})
    with pytest.raises(InputError, match=message):
        whole.check()
    if "linear" not in message:
        whole.model_copy(update={"context": 64}).check()
    switched_off = {**QWEN2, "use_sliding_window": False, "sliding_window": 64}
    save(tmp_path, switched_off, tensors)
    whole.check()


def test_a_key_of_another_measure_is_refused(model):
    with pytest.raises(ValueError, match="windows is for measure: context_gain"):
        step(model, measure="lds")
    with pytest.raises(ValueError, match="pairs is for measure: lds"):
        step(model, pairs=5)
