"""The Python API: what `import regraft` gives, lazily, with the arguments of the command line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

import regraft
from regraft.cli import app

COMMANDS = {
    "extract-lora": "extract_lora",
    "apply": "apply_lora",
    "merge": "merge_models",
    "train": "train_model",
    "evaluate": "evaluate_models",
    "export": "export_gguf",
    "plan": "plan_training",
    "push": "push_output",
    "inspect": "inspect_model",
    "theta": "theta_for",
    "demo": "run_demo",
}
# Options of the shell, and those under another name or of another function.
SHELL = {"as_json", "quiet", "debug", "threads", "schema"}
RENAMED = {("evaluate", "adapter"): "adapters"}
OF_THE_PROBE = {"probe", "steps", "search", "device"}


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import regraft, sys; print({'torch', 'transformers', 'peft', 'rich'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", regraft.__all__)
def test_every_exported_name_is_there_and_listed(name):
    assert getattr(regraft, name) is not None
    assert name in dir(regraft)


def test_names_not_exported_are_missing():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        regraft.nonsense  # noqa: B018


def test_no_function_has_the_name_of_a_package_or_module():
    root = Path(regraft.__file__).parent
    modules = {path.stem for path in root.iterdir()}
    assert not modules & set(regraft.__all__) - {"__version__"}


def test_type_checkers_see_what_is_imported_lazily():
    source = Path(regraft.__file__).read_text()
    checked = source.split("if TYPE_CHECKING:")[1].split("_MODULES")[0]
    for name in set(regraft.__all__) - {"__version__"}:
        assert name in checked, name
    assert (Path(regraft.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(("command", "function"), COMMANDS.items())
def test_a_function_takes_the_arguments_of_its_command(command, function):
    options = {p.name for p in typer.main.get_command(app).commands[command].params}
    signature = inspect.signature(getattr(regraft, function))
    accepted = set(signature.parameters)
    if "settings" in accepted:
        from dataclasses import fields

        from regraft.evaluate.prepare import Settings

        accepted |= {field.name for field in fields(Settings)}
    if command == "theta":
        options -= OF_THE_PROBE
        probe = set(inspect.signature(regraft.probe_theta).parameters)
        assert OF_THE_PROBE - {"probe"} <= probe
    missing = {RENAMED.get((command, name), name) for name in options - SHELL} - accepted
    assert not missing


@pytest.mark.parametrize("function", COMMANDS.values())
def test_a_function_is_documented_and_typed(function):
    target = getattr(regraft, function)
    assert len(target.__doc__) > 60
    assert "return" in target.__annotations__
    module, name = target.__module__, target.__name__
    assert name == function
    assert getattr(import_module(module), name) is target
