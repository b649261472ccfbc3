"""Training on conversations: loss and gradient are those of the assistant's turns alone, on one
process and on several; recovery; refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chats import words_tokenizer
from torch.nn import functional as F

import regraft
from regraft.data.batch import IGNORED, make_row
from regraft.data.positions import Sampler
from regraft.data.rows import Rows
from regraft.data.sources import Text, records
from regraft.data.tokens import tokenise
from regraft.data.toy_chat import TEMPLATE
from regraft.errors import InputError
from regraft.parallel import Mesh
from regraft.rope import ContextSpec
from regraft.train.gradients import backward
from regraft.train.job import train_model
from regraft.train.output.log import read_lines
from regraft.train.recipe.model import Toy
from regraft.train.recipe.schema import Body
from regraft.train.step.learner import prepare
from regraft.train.step.rotary import fix_rotary
from regraft.train.toy_model import untrained_model, write_toy

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
RECIPE = """
model: {model}
method: full
dtype: float64
stages:
  - {{length: 128, steps: 2, batch: 2, rate: 1e-3, mix: {{chats: 1}}}}
data:
  cache: {cache}
  held_out: 0.2
  sources:
    - {{name: chats, synthetic: chats, chat: true, words: 60, documents: 20, rows: packed}}
watch: {{every: 2, rows: 2}}
"""
TOY = "{toy: {length: 64, theta: 70, hidden: 32, intermediate: 48}}"


def write_recipe(folder: Path, text: str = RECIPE, model: str | Path = TOY, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(text.format(model=model, cache=folder.parent / "cache") + more)
    return path


def body_of(rows: int) -> Body:
    return Body.model_validate(
        {"model": "x", "dtype": "float64", "stages": [{"length": 128, "steps": 1}],
         "data": {"sources": [{"name": "a", "text": "x"}]}, "memory": {"rows": rows}}
    )  # fmt: skip


def learner_of(body: Body):
    model = untrained_model(64, 70.0, 0, **SIZES).double()
    learner = prepare(model, body, Mesh())
    fix_rotary(model, ContextSpec.from_config(model.config.to_dict()), 64)
    return learner


def step(rows: list, size: int):
    """(result, gradients) of one step with `size` rows in a pass."""
    body = body_of(size)
    learner = learner_of(body)
    result = backward(learner, rows, body, Mesh(), SimpleNamespace(flops=lambda rows: 0.0))
    return result, {name: value.grad for name, value in learner.trained().items()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple:
    """(tokens, rows) of conversations, several in a row."""
    source = Text("synthetic", "chats", chat=True, documents=6, words=40)
    tokens = tokenise(source, words_tokenizer(TEMPLATE), tmp_path_factory.mktemp("chats"), 194)
    rows = Rows("packed", tokens.lengths(), np.arange(6), 128, chat=tokens)
    sampler = Sampler("contiguous", 128)
    made = [
        make_row(pieces, tokens, 128, sampler, (0, 0, 0), masks=True, padding=0)
        for pieces in rows.rows
    ]
    assert max(map(len, rows.rows)) > 1
    return tokens, made


def test_loss_and_gradient_are_those_of_the_assistants_turns(packed):
    tokens, rows = packed
    result, gradients = step(rows, 2)
    plain = untrained_model(64, 70.0, 0, **SIZES).double()
    plain.model.rotary_emb = learner_of(body_of(1)).model.model.rotary_emb  # theirs is in float32
    total, count = torch.zeros((), dtype=torch.float64), 0
    for document in range(len(tokens)):
        ids = torch.from_numpy(tokens.slice(document, 0, 999))
        learned = torch.from_numpy(tokens.learned(document, 0, 999).copy())
        logits = plain(input_ids=ids[None]).logits[0, :-1]
        total = total + F.cross_entropy(logits[learned[1:]], ids[1:][learned[1:]], reduction="sum")
        count += int(learned.sum())
    assert 0 < count == result.valid < 0.5 * tokens.total
    (total / count).backward()
    assert result.loss == pytest.approx(float(total.detach()) / count, abs=1e-12)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_pass_without_a_token_to_learn_adds_nothing(packed):
    _, rows = packed
    empty = replace(rows[0], labels=torch.full_like(rows[0].labels, IGNORED))
    result, gradients = step([rows[0], empty], 1)
    expected, alone = step([rows[0]], 1)
    assert result.loss == expected.loss
    for name, value in alone.items():
        assert value.equal(gradients[name])


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ("{context: 1, shard: 2}", {}),
        # the last answer is at the end, which one of the two processes has
        ("{context: 2}", {"rows: packed": "rows: whole, loss_on: last", "words: 60": "words: 110"}),
    ],
)
def test_two_processes_have_the_loss_of_one(mesh, changes, ranks, tmp_path):
    text = RECIPE
    for old, new in changes.items():
        text = text.replace(old, new)
    train_model(write_recipe(tmp_path / "one", text), tmp_path / "one" / "out", device="cpu")
    recipe = write_recipe(tmp_path / "two", text, more=f"parallel: {mesh}\n")
    out = tmp_path / "two" / "out"
    codes, errors = ranks.run(2, "train", recipe, "-o", out, "--device", "cpu", "-q")
    assert codes == [0, 0], errors
    for name, keys in (("metrics.jsonl", ("loss", "gradient", "valid")), ("watch.jsonl", ["nll"])):
        one, two = (read_lines(tmp_path / run / "out" / name) for run in ("one", "two"))
        assert len(one) == len(two) == 2
        for a, b in zip(one, two, strict=True):
            for key in keys:  # float64 sums in another order
                assert a[key] == pytest.approx(b[key], rel=1e-9), key


def test_skipped_positions_and_joined_rows_train(tmp_path):
    text = RECIPE.replace("rows: packed", "rows: whole").replace("words: 60", "words: 200")
    text += "positions: {{kind: multi_chunk, window: 64, least: 8}}\n"
    train_model(write_recipe(tmp_path / "a", text), tmp_path / "a" / "out", device="cpu")
    text = RECIPE.replace("rows: packed", "rows: joined").replace(
        "held_out: 0.2", "held_out: 0.2\n  masks: false"
    )
    train_model(write_recipe(tmp_path / "b", text), tmp_path / "b" / "out", device="cpu")
    for run in "ab":
        for line in read_lines(tmp_path / run / "out" / "metrics.jsonl"):
            assert 0 < line["valid"] < line["tokens"]


def test_a_recovery_on_conversations_runs_with_its_teacher(tmp_path):
    text = RECIPE.replace("steps: 2", "steps: 12").replace("1e-3", "1e-2")
    train_model(write_recipe(tmp_path / "a", text), tmp_path / "a" / "out", device="cpu")
    text = RECIPE.replace(
        "method: full",
        "method: recover\nrecover: {{teacher: {model}, noise: 1, drift: null, distill: 1}}",
    ).replace("watch: {{every: 2, rows: 2}}", "")
    model = tmp_path / "a" / "out"
    record = train_model(
        write_recipe(tmp_path / "b", text, model), tmp_path / "b" / "out", device="cpu"
    )
    assert record.drift[0].drift > 0.1
    assert record.steps == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({", chat: true": ""}, "say chat: true for chats"),
        ({"synthetic: chats": "synthetic: notes"}, "say chat: false for notes"),
        ({"synthetic: chats": "text: a.txt"}, "a text file has no conversations"),
        ({"chats, chat: true": "notes, loss_on: all"}, "loss_on is for conversations"),
        ({"words: 60": "words: 20", "rows: packed": "rows: whole"}, "of 'chats' with something to"),
        ({"packed}}": "packed}}\n    - {{name: b, jsonl: FILE, chat: true}}"}, "role 'judge'"),
    ],
)
def test_recipes_and_data_that_do_not_fit_are_refused(changes, message, tmp_path):
    text = RECIPE
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "judge", "content": "a"}]}')
    recipe = write_recipe(tmp_path / "a", text.replace("FILE", str(path)))
    with pytest.raises(InputError, match=message):
        train_model(recipe, None, device="cpu", dry_run=True)


def test_a_model_without_a_template_is_refused(tmp_path):
    train_model(write_recipe(tmp_path / "a"), tmp_path / "a" / "out", device="cpu")
    (tmp_path / "a" / "out" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template; put a chat_template"):
        train_model(
            write_recipe(tmp_path / "b", model=tmp_path / "a" / "out"), None, device="cpu",
            dry_run=True,
        )  # fmt: skip


def test_held_out_chats_that_begin_with_too_long_a_question_are_refused(tmp_path):
    text = RECIPE.replace("watch: {{every: 2, rows: 2}}", "watch: {{length: 3}}")
    with pytest.raises(InputError, match="has anything to learn in its first 3 tokens"):
        train_model(write_recipe(tmp_path / "a", text), None, device="cpu", dry_run=True)


def test_long_chats_of_a_data_recipe_train_at_their_length(tmp_path):
    write_toy(tmp_path / "toy", Toy(hidden=32, intermediate=48), 0)
    chats = records(Text("synthetic", "chats", chat=True, documents=30, words=60), [])
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for _, one in chats))
    (tmp_path / "data.yaml").write_text(
        f"sources: [{{name: chats, licence: CC0-1.0, jsonl: {tmp_path}/c.jsonl, chat: true}}]\n"
        f"steps: [chat: {{length: 512}}]\noutput: {{tokenizer: {tmp_path}/toy}}\n"
    )
    regraft.build_data(tmp_path / "data.yaml", tmp_path / "built")
    text = RECIPE[: RECIPE.index("data:")].replace("length: 128", "length: 512")
    recipe = write_recipe(tmp_path / "a", text, tmp_path / "toy", "data: {built: ../built}\n")
    recipe.write_text(recipe.read_text().replace("../built", str(tmp_path / "built")))
    train_model(recipe, tmp_path / "a" / "out", device="cpu")
    lines = read_lines(tmp_path / "a" / "out" / "metrics.jsonl")
    assert [line["tokens"] for line in lines] == [1024, 2048]
    assert all(100 < line["valid"] < 512 for line in lines)
