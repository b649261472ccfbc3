"""Every command that README, docs, examples and help texts print runs, on toy models.

The names in them (models of the Hub, RECIPE, OUT) are replaced by toys, in
`tests/support/stand_ins.py`; a name that is not there makes its command fail, so a new page needs
its names there. Commands that are marked as not run are parsed.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from itertools import pairwise

import pytest
from generate.commands import every_command
from printed import ROOT, commands
from stand_ins import regraft_words, toy_words
from typer.testing import CliRunner

from regraft import cli

COMMANDS = commands()
OF_REGRAFT = [one for one in COMMANDS if re.match(r"regraft |torchrun ", one.text)]
TOY_COMMANDS = {tuple(toy_words(one.text)): one for one in OF_REGRAFT if one.reason is None}
NOT_RUN = [one for one in OF_REGRAFT if one.reason is not None]
TORCHRUN = [one for one in COMMANDS if one.text.startswith("torchrun ")]
OTHERS = [one for one in COMMANDS if re.match(r"make |python |pip ", one.text)]


def test_commands_are_found_where_they_are_printed():
    names = {one.page.name for one in COMMANDS}
    assert {"README.md", "one-gpu.md", "merge.md", "evaluate.md", "extend-toy.yaml"} <= names
    assert "theta.py" in names
    for verb in every_command():
        assert any(f"regraft {verb} " in one.text for one in TOY_COMMANDS.values()), verb


@pytest.mark.parametrize("words", TOY_COMMANDS, ids=shlex.join)
def test_the_command_runs(words, workplace, addresses, tmp_path):
    command = TOY_COMMANDS[words]
    out = tmp_path / ("out.gguf" if words[0] == "export" else "out")
    given = {"-o": str(out), **addresses}
    arguments = [given.get(before, word) for before, word in pairwise(("", *words))]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, f"{command.page.name}: {command.text}\n{done.output[-2000:]}"


@pytest.mark.parametrize("command", NOT_RUN, ids=lambda one: one.text)
def test_a_command_that_is_not_run_has_the_arguments_of_its_command(command):
    verb, *words = regraft_words(command.text)
    if verb == "data":
        verb, *words = f"data {words[0]}", *words[1:]
    parser = every_command()[verb]
    assert parser.make_context(verb, words).params


@pytest.mark.parametrize("command", TORCHRUN, ids=lambda one: one.text)
def test_torchrun_takes_its_options(command):
    """What several processes do is tested elsewhere."""
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(shlex.split(command.text)[1:])
    assert parsed.module
    assert parsed.training_script == "regraft"


@pytest.mark.parametrize("command", OTHERS, ids=lambda one: one.text)
def test_scripts_and_targets_exist(command):
    """Benchmarks run in tests/benchmarks, make and pip need a network."""
    program, *words = command.text.split()
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    else:
        assert words[0] == "install"
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for word in shlex.split(command.text)[2:]:
            for extra in re.findall(r"\[(.+)\]", word):
                assert set(extra.split(",")) <= extras["optional-dependencies"].keys()
            assert not word.startswith("./") or (ROOT / word).is_dir()
