"""Training recipes: what is read, and that what is wrong is named by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusals import refusal_of

from regraft.document import Document
from regraft.train.recipe.recipe import Recipe, schema

EXAMPLES = Path(__file__).parents[3] / "examples"
PLAIN = """model: org/base
stages:
  - {length: 64k, steps: 3, rate: 2e-5, theta: 15.3e6}
data:
  sources:
    - {name: books, text: books/*.txt}
    - {name: short, jsonl: short.jsonl, rows: packed}
"""


def parse(text: str) -> Recipe:
    return Recipe(Document("r.yaml", text))


def complaint(text: str) -> str:
    return refusal_of(parse, text)


def test_numbers_as_people_write_them():
    stage = parse(PLAIN).body.stages[0]
    assert (stage.length, stage.rate, stage.theta) == (65536, 2e-5, 15.3e6)


def test_shares_of_sources_sum_to_one():
    recipe = parse(PLAIN)
    assert recipe.mix(recipe.body.stages[0]) == {"books": 0.5, "short": 0.5}
    recipe = parse(PLAIN.replace("theta: 15.3e6", "mix: {short: 3, books: 1}"))
    assert recipe.mix(recipe.body.stages[0]) == {"books": 0.25, "short": 0.75}


def test_tokens_become_steps_rounded_up():
    recipe = parse(PLAIN.replace("steps: 3", "tokens: 1M, batch: 3"))
    assert recipe.steps(recipe.body.stages[0]) == 6  # 1048576 / (3 * 65536) = 5.3
    recipe = parse(
        PLAIN.replace("steps: 3", "tokens: 1M, batch: 3")
        + "positions: {kind: multi_chunk, window: 8k}\n"
    )
    assert recipe.steps(recipe.body.stages[0]) == 43


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (PLAIN.replace("steps", "stepz"), 3, "'stepz' is not a key here (did you mean steps?)"),
        (PLAIN + "methd: lora\n", 8, "did you mean method?"),
        (PLAIN + "memory: {ofload: true}\n", 8, "did you mean offload?"),
        (PLAIN.replace("name: books", "nam: books"), 6, "did you mean name?"),
        (PLAIN.replace("org/base", "{toy: {hiden: 3}}"), 1, "did you mean hidden?"),
        (PLAIN.replace("64k", "64kk"), 3, "'64kk' is not a token count"),
        (PLAIN.replace("steps: 3", "steps: 3, batch: 2000000000"), 3, "equal to 1048576"),
        (PLAIN + "lora: {rank: 1000000000}\n", 8, "less than or equal to 65536"),
        (PLAIN.replace("steps: 3", "steps: 0"), 3, "greater than or equal to 1, not 0"),
        (PLAIN.replace("steps: 3, ", ""), 3, "give either steps or tokens"),
        (PLAIN.replace("steps: 3", "steps: 3, tokens: 1k"), 3, "give either steps or tokens"),
        (PLAIN.replace("theta: 15.3e6", "mix: {shrt: 1}"), 3, "did you mean short?"),
        (PLAIN.replace("name: short", "name: books"), 7, "'books' is listed twice"),
        (PLAIN.replace("text: books/*.txt", "field: x"), 6, "give one of text, jsonl"),
        (PLAIN + "lora: {rank: 8}\n", 8, "method is full"),
        (PLAIN + "positions: {kind: pose}\n", 8, "pose needs a window"),
        (PLAIN + "positions: {window: 8k}\n", 8, "contiguous rows are as long"),
        (PLAIN + "export: {kind: adapter}\n", 8, "regraft extract-lora"),
        (PLAIN + "optimizer: {betas: [0.9, 2]}\n", 8, "optimizer.betas.1"),
        (PLAIN.replace("theta: 15.3e6", "fallback: [1e7]"), 3, "say watch: {stop: true}"),
        (
            PLAIN.replace("15.3e6", "15.3e6, fallback: [15.3e6]") + "watch: {stop: true}\n",
            3,
            "a theta is listed twice",
        ),
        ("- model\n", 1, "a recipe is a mapping"),
    ],
)
def test_what_is_wrong_is_named_by_line(text, line, words):
    message = complaint(text)
    assert message.startswith(f"r.yaml, line {line}: ")
    assert words in message


def test_published_schedules_validate():
    paths = sorted(EXAMPLES.glob("train-*.yaml")) + sorted(EXAMPLES.glob("extend-*.yaml"))
    names = {path.name for path in paths}
    assert {"train-gradient-1048k.yaml", "train-prolong-512k.yaml"} <= names
    recipes = {path.name: Recipe.read(path) for path in paths}
    gradient = recipes["train-gradient-1048k.yaml"]
    tokens = [gradient.steps(stage) * stage.batch * stage.length for stage in gradient.body.stages]
    assert [round(count / 1e6, 1) for count in tokens] == [62.9, 100.7, 419.4, 838.9]
    prolong = recipes["train-prolong-512k.yaml"]
    assert [prolong.steps(stage) for stage in prolong.body.stages] == [4769, 2385]


def test_the_schema_describes_every_key_and_refuses_others():
    json_schema = schema()
    assert {"model", "method", "stages", "data", "positions", "memory"} <= set(
        json_schema["properties"]
    )
    assert json_schema["additionalProperties"] is False
