"""Steps run on parts as far as documents are independent, then on sources, then on everything."""

from __future__ import annotations

from regraft.data.build.disk_table import DiskTable
from regraft.data.build.pipeline import pipeline
from regraft.data.build.schema import Body

QUALITY, JOIN, DEDUP = "quality", {"length": {"join": "1k"}}, "dedup"


def _pipeline(own, common):
    sources = [
        {"name": f"s{i}", "licence": "CC0-1.0", "text": "a", "steps": steps}
        for i, steps in enumerate(own)
    ]
    body = {"sources": sources, "steps": common, "output": {"tokenizer": "bytes"}}
    made = pipeline(Body.model_validate(body))
    places = [
        ([step.label for step in chain.on_parts], [step.label for step in chain.on_source])
        for chain in made.chains
    ]
    return places, [step.label for step in made.on_all], list(made.steps)


def test_independent_steps_run_on_parts():
    places, on_all, labels = _pipeline(
        [[QUALITY], [QUALITY, JOIN, QUALITY], []], [QUALITY, DEDUP, QUALITY]
    )
    assert places == [
        (["s0/1-quality", "all/1-quality"], []),
        (["s1/1-quality"], ["s1/2-length", "s1/3-quality", "all/1-quality"]),
        (["all/1-quality"], []),
    ]
    assert on_all == ["all/2-dedup", "all/3-quality"]
    assert labels == [
        "s0/1-quality", "s1/1-quality", "s1/2-length", "s1/3-quality",
        "all/1-quality", "all/2-dedup", "all/3-quality",
    ]  # fmt: skip


def test_without_a_step_on_everything_nothing_is_left(tmp_path):
    assert _pipeline([[DEDUP]], [])[:2] == ([([], ["s0/1-dedup"])], [])


def test_a_table_on_disk_knows_its_keys(tmp_path):
    with DiskTable(tmp_path / "t") as table:
        assert table.add_new(b"a")
        assert not table.add_new(b"a")
        table.add([(b"k", b"2"), (b"k", b"1"), (b"k", b"2")])
        assert table.values(b"k") == [b"1", b"2"]
        assert table.values(b"a") == [b""]
        assert table.values(b"none") == []
    assert list(tmp_path.iterdir()) == []
