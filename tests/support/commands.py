"""Commands run in this process, and the checks that hold for every refusal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from regraft import cli


def run(*argv: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(part) for part in argv])


def refused(result: Any, code: int = 2) -> str:
    """The line on stderr, after the checks that hold for every refusal."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert re.fullmatch(r"regraft: [^\n]+\n", result.stderr), result.stderr
    return str(result.stderr)
