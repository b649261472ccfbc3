"""README.md of a built folder: a dataset card for the Hub, and what was done to the text."""

from __future__ import annotations

from pathlib import Path

from regraft.data.build.record import RECORD, DatasetRecord
from regraft.data.build.report.domain_map import FIGURE
from regraft.data.build.statistics import Flow, Statistics
from regraft.markdown import Markdown, render, table
from regraft.units import counted, format_bytes
from regraft.write import write_text

_CARD = """\
---
license: other
tags: [regraft, long-context]
configs:
{% for name in record.sources %}
- config_name: {{ name | yaml }}
  data_files: data/{{ name }}/*.parquet
{% endfor %}
---

# {{ title }}

Text for `regraft train`, made by `regraft data build`. Every token count is by the tokenizer
{{ record.tokenizer.name }}.

{{ sources }}

{{ shares }}

Tokens read are estimated, by the tokens per character of what was written.

{% if map %}
![A map of documents: {{ map }}]({{ figure }})

{% endif %}
{% for name, source in record.sources.items() %}
{% for phrase in source.report.left_out() %}
Of {{ name }}, {{ phrase }}.

{% endfor %}
{% endfor %}
{% for warning in record.warnings %}
{{ warning }}

{% endfor %}
{% if record.steps %}
## Steps

{{ steps }}

{% endif %}
{% if mixes %}
## Mixes

Shares of rows by source, for the `mix` of a training stage.

{{ mixes }}

{% endif %}
## Train on it

```yaml
data:
  built: {{ folder }}
```

Shards, hashes and all counts are in [{{ manifest }}](data.json), figures in
[index.html](index.html), the recipe in [recipe.yaml](recipe.yaml).
"""


def write_card(folder: Path, record: DatasetRecord, name: str, caption: str | None) -> None:
    """Write README.md of a dataset called `name`. caption: of its map; None: it has none."""
    text = render(
        _CARD, title=name, folder=name, record=record, manifest=RECORD,
        sources=table(source_rows(record)), shares=table(share_rows(record)),
        map=caption, figure=FIGURE, steps=table(step_rows(record)),
        mixes=table(mix_rows(record)) if record.mixes else Markdown(""),
    )  # fmt: skip
    write_text(folder / "README.md", text)


def source_rows(record: DatasetRecord) -> list[list[str]]:
    """A row for each source: licence, size as read and as written."""
    rows = [["source", "licence", "from", "files", "read", "documents", "tokens"]]
    for name, source in record.sources.items():
        rows.append([
            name, source.licence, f"{source.kind} {source.location}", f"{source.files:,}",
            f"{counted(source.read.documents, 'document')}, {format_bytes(source.bytes)}",
            f"{source.out.documents:,}", f"{source.out.tokens:,}",
        ])  # fmt: skip
    return rows


def share_rows(record: DatasetRecord) -> list[list[str]]:
    """A row for each source: its documents and tokens before and after the steps, with shares.

    Tokens before are characters times the tokens per character of what was written.
    """
    rows = [["source", "documents read", "documents written", "tokens read, about",
             "tokens written"]]  # fmt: skip
    sources = record.sources.values()
    columns = [
        [source.read.documents for source in sources],
        [source.out.documents for source in sources],
        [
            round(source.read.characters * source.out.tokens / max(1, source.out.characters))
            for source in sources
        ],
        [source.out.tokens for source in sources],
    ]
    for at, name in enumerate(record.sources):
        rows.append([name, *(_counted(column[at], sum(column)) for column in columns)])
    return rows


def step_rows(record: DatasetRecord) -> list[list[str]]:
    """A row for each step: what came in and went out, and why documents were dropped."""
    rows = [["step", "in", "out", "characters out", "dropped and counted"]]
    for step in record.steps:
        rows.append([
            step.step, f"{step.into.documents:,}", f"{step.out.documents:,}",
            _share(step.out, step.into), _counts(step),
        ])  # fmt: skip
    return rows


def mix_rows(record: DatasetRecord) -> list[list[str]]:
    """A row for each mix: the share of every source."""
    names = list(record.sources)
    rows = [["mix", *names]]
    for mix, shares in record.mixes.items():
        whole = sum(shares.values())
        rows.append([mix, *(f"{shares.get(name, 0) / whole:.1%}" for name in names)])
    return rows


def _counted(number: int, whole: int) -> str:
    return f"{number:,} ({number / max(1, whole):.1%})"


def _share(part: Flow, whole: Flow) -> str:
    if not whole.characters:
        return f"{part.characters:,}"
    return f"{part.characters:,} ({part.characters / whole.characters:.1%})"


def _counts(step: Statistics) -> str:
    counts = {**step.dropped, **step.counts}
    return ", ".join(f"{name}: {number:,}" for name, number in counts.items()) or "-"


def summary(record: DatasetRecord) -> list[tuple[str, str]]:
    """(label, text) of a build, for the command line."""
    rows = [
        (
            name,
            f"{counted(source.read.documents, 'document')} read, {source.out.documents:,} "
            f"written, {counted(source.out.tokens, 'token')}",
        )
        for name, source in record.sources.items()
    ]
    rows += [
        (step.step, f"{step.into.documents:,} in, {step.out.documents:,} out; {_counts(step)}")
        for step in record.steps
    ]
    return [*rows, ("files", f"{len(record.shards):,}")]
