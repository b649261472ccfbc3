"""Recipes as text: what is read, and that what is wrong is named by line before any model is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refusal_of

from regraft.document import Document
from regraft.errors import InputError
from regraft.merge.recipe.recipe import Recipe
from regraft.merge.recipe.references import ModelRef
from regraft.merge.recipe.schema import schema
from regraft.merge.recipe.settings import Condition

PLAIN = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n  - model: b\n"


def parse(text: str) -> Recipe:
    return Recipe(Document("r.yaml", text))


def complaint(text: str) -> str:
    message = refusal_of(parse, text)
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/model", ModelRef("org/model")),
        ("org/model@v2", ModelRef("org/model", "v2")),
        ("org/m@v2+org/a@main", ModelRef("org/m", "v2", "org/a", "main")),
        ("./m+./a", ModelRef("./m", None, "./a")),
    ],
)
def test_model_references_are_read_and_written_alike(text: str, ref: ModelRef) -> None:
    recipe = parse(PLAIN.replace("model: b", f"model: {text}"))
    assert recipe.slices[0].sources[1].ref == ref
    assert str(ref) == text


def test_mapping_form_of_a_model_reference() -> None:
    text = "{model: {path: m, revision: r}, lora: {path: a}}"
    recipe = parse(PLAIN.replace("model: b", f"model: {text}"))
    assert recipe.slices[0].sources[1].ref == ModelRef("m", "r", "a")


def test_an_existing_folder_may_have_plus_and_at_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a+b@c"
    folder.mkdir()
    recipe = parse(PLAIN.replace("model: b", f"model: {folder}"))
    assert recipe.slices[0].sources[1].ref == ModelRef(str(folder))


def test_settings_become_conditions() -> None:
    text = "parameters:\n  t:\n    - {filter: mlp, value: [0, 1]}\n    - value: 0.5\n"
    text += "  weight: [1, 2]\n"
    recipe = parse(PLAIN + text)
    settings, _ = recipe.slices[0].scopes[0]
    assert settings["t"] == (Condition("mlp", (0, 1)), Condition(None, 0.5))
    assert settings["weight"] == (Condition(None, (1, 2)),)


def test_base_model_joins_the_models_once_and_the_references_come_first() -> None:
    recipe = parse("base_model: a\n" + PLAIN)
    assert [str(s.ref) for s in recipe.slices[0].sources] == ["a", "b"]
    recipe = parse("base_model: c\n" + PLAIN)
    assert [str(s.ref) for s in recipe.slices[0].sources] == ["a", "b", "c"]
    assert [str(ref) for ref, _ in recipe.references()] == ["c", "a", "b"]


def test_anchors_and_merge_keys_work() -> None:
    recipe = parse(
        "merge_method: linear\nmodels:\n  - model: a\n    parameters: &p {weight: 1, density: 1}\n"
        "  - model: b\n    parameters: {<<: *p, weight: 3}\n"
    )
    first, second = recipe.slices[0].sources
    assert first.parameters["weight"] == (Condition(None, 1),)
    assert second.parameters["weight"] == (Condition(None, 3),)
    assert second.parameters["density"] == (Condition(None, 1),)


@pytest.mark.parametrize(
    ("context", "source", "changes"),
    [
        ("a", "a", {}),
        ("{from: a}", "a", {}),
        ("'theta=8e6,length=64k'", None, {"theta": 8e6, "length": 65536}),
        ("{from: base, length: 128k}", "base", {"length": 131072}),
        ("{theta: 8e6, rope_type: yarn, factor: 4}", None,
         {"theta": 8e6, "rope_type": "yarn", "factor": 4.0}),
    ],
)  # fmt: skip
def test_context_spellings(context: str, source: str | None, changes: dict) -> None:
    result = parse(PLAIN + f"context: {context}\n").body.context
    assert result is not None
    assert (result.source, result.changes()) == (source, changes)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, "empty"),
        ("- a\n", 1, "mapping"),
        ("merge_method: linear\n", 1, "'models'"),
        ("merge_method: linear\nmodels: []\n", 2, "'models'"),
        ("models: [{model: a}]\n", 1, "'merge_method' is missing"),
        (PLAIN + "slices: []\n", 5, "one of"),
        (PLAIN + "merge_metod: x\n", 5, "did you mean merge_method?"),
        (PLAIN.replace("model: b", "modle: b"), 4, "did you mean model?"),
        (PLAIN + "out_dtype: bflot16\n", 5, "did you mean bfloat16?"),
        (PLAIN + "dtype: int64\n", 5, "not one of"),
        (PLAIN + "scale: yes please\n", 5, "valid number"),
        (PLAIN + "scale: 0.5\n", 5, "base_model"),
        (PLAIN + "context: {lenght: 4k}\n", 5, "did you mean length?"),
        (PLAIN + "context: {length: many}\n", 5, "token count"),
        (PLAIN + "context: {}\n", 5, "give one of from"),
        (PLAIN + "ties: {variant: papre}\n", 5, "'mergekit', 'paper' or 'peft'"),
        (PLAIN + "tokenizer_source: base\ntokenizer: {source: union}\n", 5, "either"),
        (PLAIN + "parameters: {t: []}\n", 5, "a list of values"),
        (PLAIN + "parameters: {t: [{filter: a}]}\n", 5, "filter"),
        (PLAIN + "parameters: {t: [1, {value: 2}]}\n", 5, "filter"),
        (PLAIN + "parameters: {t: .nan}\n", 5, "finite"),
        (PLAIN + "parameters: {t: .inf}\n", 5, "finite"),
        (PLAIN + "dtype: float32\ndtype: float16\n", 6, "twice"),
        (PLAIN + "  - model: a\n", 5, "twice"),
        (PLAIN + "  - model: a+b+c\n", 5, "is not a model"),
        (PLAIN + "  - model: 'a@'\n", 5, "is not a model"),
        (PLAIN + "  - model: [a]\n", 5, "is not a model"),
        (PLAIN + "chat_template: !!python/object/apply:os.system [true]\n", 5, "tag"),
        (PLAIN + "chat_template: !!binary aGk=\n", 5, "tag"),
        (PLAIN + "parameters: &p {t: *p}\n", 5, "inside its own anchor"),
        (PLAIN + "? [a]\n: b\n", None, "a key must be a word"),
        (PLAIN + "x: [\n", None, "not valid YAML"),
        (PLAIN + "x: *nobody\n", 5, "undefined alias"),
        (PLAIN + "--- \na: b\n", 5, "save each document as a recipe"),
        (PLAIN + "x: \x01\n", None, "not valid YAML"),
        (PLAIN + "x: " + "[" * 5000, None, "nested"),
        (PLAIN + "residual_weight: 0777777777x\n", 5, "is not a key here"),
    ],
)  # fmt: skip
def test_bad_recipes_are_one_sentence_with_the_line(
    text: str, line: int | None, words: str
) -> None:
    message = complaint(text)
    assert words in message
    if line is not None:
        assert message.startswith(f"r.yaml, line {line}: ") or f"line {line}" in message


def test_the_method_and_its_parameters_are_checked_before_a_model_is_opened() -> None:
    text = (
        "merge_method: ties\nbase_model: b\nmodels:\n  - {model: a, parameters: {weigth: 1}}\n"
        "  - {model: c, parameters: {density: [0.5, 1.5], weight: [{value: much}]}}\n"
    )
    message = complaint(text)
    assert (
        "3 mistakes: line 4: no method has a parameter 'weigth' (did you mean weight?)" in message
    )
    assert "line 5: density must be between 0 and 1, not 1.5" in message
    assert "line 5: weight must be a number, not 'much'" in message
    assert "did you mean linear?" in complaint(PLAIN.replace("linear", "linaer"))


def test_mistakes_of_the_schema_and_of_the_method_are_named_together() -> None:
    text = (
        "merge_method: ties\nbase_model: b\nmodels:\n  - {model: a, parameters: {densty: 1}}\n"
        "  - {model: c, parameters: {density: 3, weight: {much: 1}}}\nscale: abc\ncontxt: c\n"
    )
    message = complaint(text)
    for words in ("r.yaml has 5 mistakes: line 4: no method has a parameter 'densty'",
                  "line 5: density must be between 0 and 1", "{'much': 1} is not", "line 6: scale",
                  "line 7: 'contxt' is not a key"):  # fmt: skip
        assert words in message
    both = complaint(PLAIN.replace("linear", "tiez") + "dtype: float99\n")
    assert "'tiez' is not a merge method (did you mean ties?)" in both
    assert "'float99'" in both


def test_a_yaml_bomb_is_refused_quickly() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    for i in range(1, 12):
        bomb += f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n"
    assert "multiply" in complaint(bomb)


def test_thousands_of_models_are_refused() -> None:
    models = "".join(f"  - model: org/m{i}\n" for i in range(3000))
    assert "3000 models" in complaint(f"merge_method: linear\nmodels:\n{models}")


SLICE = """\
merge_method: passthrough
slices:
  - sources:
      - model: a
        layer_range: [0, 4]
      - model: b
        layer_range: {}
"""


@pytest.mark.parametrize(
    ("layer_range", "line", "words"),
    [
        ("[0, 3]", 3, "one length"),
        ("[4, 4]", 7, "holds no layers"),
        ("[-1, 3]", 7, "holds no layers"),
        ("[0]", 7, "at least 2"),
        ("[0, a]", 7, "valid integer"),
        ("4", 7, "valid list"),
    ],
)
def test_bad_layer_ranges(layer_range: str, line: int, words: str) -> None:
    message = complaint(SLICE.format(layer_range))
    assert f"line {line}" in message
    assert words in message


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for name, data, words in (
        ("gone.yaml", None, "cannot be read"),
        ("binary.yaml", b"merge_method: \xff\xfe", "UTF-8"),
        ("big.yaml", b"#" * 2_000_000, "larger"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            Recipe.read(path)
    with pytest.raises(InputError, match="is a folder"):
        Recipe.read(tmp_path)


def test_schema_has_every_key_method_and_parameter() -> None:
    described = json.loads(json.dumps(schema()))
    assert described["additionalProperties"] is False
    assert {"merge_method", "models", "slices", "context", "recover"} <= set(
        described["properties"]
    )
    assert {"linear", "passthrough", "arcee_fusion"} <= set(
        described["properties"]["merge_method"]["enum"]
    )
    assert set(described["$defs"]["Context"]["properties"]) == {
        "from", "theta", "length", "rope_type", "factor", "original",
    }  # fmt: skip
    assert described["$defs"]["InputModel"]["properties"]["parameters"]["anyOf"][0] == {
        "$ref": "#/$defs/Parameters"
    }
    settings = described["$defs"]["Parameters"]["properties"]
    assert "linear" in settings["weight"]["description"]


def test_examples_are_recipes() -> None:
    examples = sorted((Path(__file__).parents[3] / "examples").glob("merge-*.yaml"))
    assert len(examples) >= 3
    for path in examples:
        recipe = Recipe.read(path)
        assert recipe.slices
