"""Recipes against a small schema: every mistake is named at once, with its line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from refusals import refusal_of

from regraft.document import Document
from regraft.errors import InputError
from regraft.merge.recipe.recipe import Recipe as MergeRecipe
from regraft.recipe import BaseRecipe, Mistakes, RecipeError
from regraft.train.recipe.recipe import Recipe as TrainingRecipe


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Toy(Block):
    hidden: int = 8


class Stage(Block):
    length: Annotated[int, Field(ge=1)]
    start: int | None = Field(default=None, alias="from")


class Plan(Block):
    model: str | Toy
    stages: list[Stage] = []
    parts: dict[str, Stage] = {}
    degree: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class Recipe(BaseRecipe[Plan]):
    schema = Plan
    example = "model: org/name"

    def check(self, mistakes: Mistakes) -> None:
        for i, stage in enumerate(self.body.stages):
            if stage.length > 10:
                mistakes.add(("stages", i, "length"), f"{stage.length} is too long.")


def message(text: str, recipe: type[BaseRecipe[Any]] = Recipe) -> str:
    return refusal_of(recipe, Document("r.yaml", text))


def test_all_mistakes_of_the_schema_are_named_at_once() -> None:
    text = "model: a\nstages:\n  - {lenght: 3}\n  - {length: 0}\ndegree: 0\nx: 1\n"
    assert message(text) == (
        "r.yaml has 4 mistakes: line 3: 'lenght' is not a key here (did you mean length?); "
        "line 4: stages.1.length should be greater than or equal to 1, not 0; "
        "line 5: degree should be greater than or equal to 1, or 'auto', not 0; "
        "line 6: 'x' is not a key here; the keys here are model, stages, parts, degree."
    )


def test_all_contradictions_are_named_at_once() -> None:
    text = "model: a\nstages:\n  - {length: 30}\n  - {length: 3}\n  - {length: 40}\n"
    assert message(text) == (
        "r.yaml has 2 mistakes: line 3: 30 is too long; line 5: 40 is too long."
    )


def test_many_mistakes_are_counted_not_listed() -> None:
    text = "model: a\nstages:\n" + "  - {length: 0}\n" * 25
    listed = message(text)
    assert listed.startswith("r.yaml has 25 mistakes: line 3: ")
    assert listed.count("; line ") == 9
    assert listed.endswith("; and 15 more.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {hiden: 3}\n", "line 1: 'hiden' is not a key here (did you mean hidden?)"),
        ("model: {hidden: x}\n", "line 1: model.hidden should be a valid integer"),
        ("model: 3\n", "line 1: model should be a valid string"),
        ("model: a\nstages: [{length: 1, form: 2}]\n", "line 2: 'form' is not a key here (did you "
         "mean from?)"),
        ("model: a\nparts: {one: {length: 1, x: 2}}\n", "the keys here are length, from"),
        ("stages: []\n", "line 1: 'model' is missing."),
        ("- a\n", "line 1: a recipe is a mapping such as 'model: org/name'."),
    ],
)  # fmt: skip
def test_a_single_mistake_is_one_sentence(text: str, expected: str) -> None:
    assert message(text).startswith("r.yaml, line ")
    assert expected in message(text)


@pytest.mark.parametrize(
    ("read", "text", "mend", "first", "then"),
    [
        (
            MergeRecipe,
            "merge_method: ties\nbogus: 1\nbase_model: a\nscale: x\n"
            "models: [{model: b, parameters: {wieght: 1, density: 3}}, {model: b}]\n"
            "tokenizer: {source: base}\ntokenizer_source: base\ncontext: {}\n",
            {
                "bogus: 1\n": "",
                "scale: x": "scale: 2",
                "wieght": "weight",
                "source: base}": "}",
                "density: 3": "density: 0.3",
            },
            ["bogus", "scale", "wieght", "density"],
            ["b is in the same slice twice", "either tokenizer or", "give one of from, theta"],
        ),
        (
            TrainingRecipe,
            "model: a\nmetod: lora\nfreeze: [mlp]\nlora: {rank: 2}\n"
            "stages: [{length: 8k, steps: -1, mix: {b: 1}}, {length: 4k, steps: 1, mix: {c: 1}}]\n"
            "data: {sources: [{name: a, synthetic: notes}, {name: a, synthetic: notes}]}\n",
            {"metod": "method", "-1": "1"},
            ["metod", "steps"],
            ["freeze", "'b'", "'c'", "'a'"],
        ),
    ],
)
def test_contradictions_are_named_when_every_value_is_right(
    read: type[Any], text: str, mend: dict[str, str], first: list[str], then: list[str]
) -> None:
    for words in (first, then):
        with pytest.raises(RecipeError) as caught:
            read(Document("r.yaml", text))
        for word in words:
            assert word in str(caught.value)
        assert len(caught.value.entries) >= len(words)
        for old, new in mend.items():
            text = text.replace(old, new)


MERGE = "merge_method: linear\nmodels: [{model: a}]\n"
TRAIN = (
    "model: a\nstages: [{length: 8k, steps: 1}]\ndata: {sources: [{name: a, synthetic: notes}]}\n"
)
DEEP = "{a: " * 200 + "1" + "}" * 200


@pytest.mark.parametrize(("recipe", "plain"), [(MergeRecipe, MERGE), (TrainingRecipe, TRAIN)])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("number", "1" + "0" * 400),
        ("number", "-" + "9" * 5000),
        ("number", "0x" + "f" * 300),
        ("number", "0o9"),
        ("text", '"\\ud800"'),
        ("text", '"a\\0b"'),
        ("key", '{"\\udfff": 1}'),
        ("key", '{"\\0": 1}'),
        ("key", "{null: 1, 3: 1, 1.5: 2, 2020-01-01: 3, true: 2}"),
        ("key", "{[a]: 1}"),
        ("key", "{{a: b}: 1}"),
        ("key", "{!!binary aGk=: 1}"),
        ("nested", DEEP),
        ("nested", "[" * 300 + "]" * 300),
        ("nested", "[" * 20000 + "]" * 20000),
    ],
)
def test_hostile_yaml_gets_a_sentence(
    recipe: type[BaseRecipe[Any]], plain: str, key: str, value: str
) -> None:
    places = {
        MergeRecipe: ("scale: {}", "parameters: {{weight: {}}}", "recover: {}", "base_model: {}"),
        TrainingRecipe: ("seed: {}", "optimizer: {{eps: {}}}", "model: {}", "freeze: [{}]"),
    }[recipe]
    for place in places:
        top = place.split(":")[0]
        rest = "".join(line for line in plain.splitlines(True) if not line.startswith(top + ":"))
        error = None
        try:
            recipe(Document("r.yaml", rest + place.format(value) + "\n"))
        except InputError as caught:
            error = str(caught)
        assert error is None or "\n" not in error.encode().decode()
