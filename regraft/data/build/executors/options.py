"""What a recipe says about the cluster that a build may run on, and whether it can."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Literal, get_args

from pydantic import Field

from regraft.errors import InputError, did_you_mean
from regraft.recipe_values import Block, Bytes, Count

Kind = Literal["local", "slurm", "ray"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLUSTERS: tuple[Kind, ...] = ("slurm", "ray")  # whose tasks run on other machines


class Executor(Block):
    """How `--executor slurm` and `ray` run the parts of sources, without effect on the output."""

    partition: str | None = Field(default=None, description="of Slurm; required for it")
    time: str = Field(default="24:00:00", description="limit of a Slurm job")
    cpus: Count = Field(default=1, description="of a task")
    memory: Bytes = Field(default=4_000_000_000, description="of a task, such as 4GB")
    tasks: Count | None = Field(default=None, description="most at once; default: no limit")
    sbatch: dict[str, str] = Field(
        default={}, description="more options of sbatch, such as {account: me, qos: normal}"
    )
    setup: str | None = Field(
        default=None, description="shell command of a Slurm job before its work"
    )


def check_executor(name: str, options: Executor) -> Kind:
    """The kind of executor. Raises InputError where it is none or cannot be used here."""
    kind = next((one for one in KINDS if one == name), None)
    if kind is None:
        raise InputError(
            f"--executor {name}{did_you_mean(name, KINDS)}: give one of {', '.join(KINDS)}."
        )
    for package in ("datatrove", *(["ray"] if kind == "ray" else [])):
        if importlib.util.find_spec(package) is None:
            remedy = "'regraft[cluster]'" if package == "datatrove" else package
            raise InputError(f"--executor {kind} needs {package}: pip install {remedy}.")
    if kind == "slurm" and options.partition is None:
        raise InputError(
            "--executor slurm needs a partition; add executor: {partition: NAME} to the recipe."
        )
    if kind == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "--executor slurm: there is no sbatch on this machine; run it where jobs are submitted."
        )
    return kind
