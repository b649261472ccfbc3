"""A step's keys are checked; its spool and its random numbers are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from built import documents, run_step
from pydantic import Field, ValidationError

from regraft.data.build.registry import StepEntry
from regraft.data.build.statistics import Statistics
from regraft.data.build.step import Context, Spool, Step
from regraft.data.build.tokens import ByteCounter
from regraft.errors import OutputError
from regraft.recipe_values import Count


class Twice(Step):
    """Give every document twice, the second time after all."""

    name = "twice"
    least: Count = Field(default=2, description="characters")

    def run(self, documents, context):
        with context.spool(documents) as spool:
            assert len(spool) == 3
            for _ in range(2):
                for document in spool:
                    if len(document.text) < self.least:
                        context.statistics.drop("too short")
                    else:
                        yield document


def test_a_spool_is_read_several_times_and_removed():
    passed, statistics = run_step(Twice(), documents("ab", "c", "de\u2028f\n"))
    assert [one.text for one in passed] == ["ab", "de\u2028f\n"] * 2
    assert statistics.dropped == {"too short": 2}


def test_a_full_disk_names_the_spool(tmp_path):
    with pytest.raises(OutputError, match="/dev/full: the disk is full; make room"):
        Spool.write(Path("/dev/full"), documents("ab"))


def test_random_numbers_depend_on_seed_and_name(tmp_path):
    def draw(seed, name):
        context = Context(Statistics("s"), ByteCounter(), tmp_path, seed)
        return int(context.rng(name).integers(2**40))

    assert draw(0, "a") == draw(0, "a")
    assert len({draw(0, "a"), draw(1, "a"), draw(0, "b")}) == 3


def test_an_entry_names_one_registered_step():
    for key, field in StepEntry.model_fields.items():
        (step,) = [one for one in field.annotation.__args__ if one is not type(None)]
        assert step.name == key
        assert step.__doc__
    with pytest.raises(ValidationError, match="no_such"):
        StepEntry.model_validate("no_such")
