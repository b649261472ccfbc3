"""The demo's result for people to read: a table on the screen, README.md and demo.png."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from regraft import drawing, markdown
from regraft.data.toy_language import WORDS, needle_count
from regraft.demo.result import DemoRecord
from regraft.write import write_text

_README = """\
# regraft demo, seed {{ seed }}

{% for line in story %}
{{ line }}
{% endfor %}

## Looking things up

Share of questions answered, by length of the row; `shout` is the derivative's own skill.

{{ retrieval }}

![Questions answered by length, and NLL of prose by position](demo.png)

## Plain prose

Mean negative log likelihood (nats a word) by position in rows of {{ length }} words without
needles.

{{ prose }}

## What is unusual about this toy

{% for line in notes %}
- {{ line }}
{% endfor %}

Every number, hyperparameter and version is in [result.json](result.json).
"""


def write_page(folder: Path, result: DemoRecord) -> None:
    """Write README.md and demo.png."""
    draw(folder / "demo.png", result)
    text = markdown.render(
        _README,
        seed=result.seed,
        story=story(result),
        retrieval=markdown.table(_retrieval(result)),
        prose=markdown.table(_prose(result)),
        length=result.hyperparameters.lengths[-1],
        notes=notes(result),
    )
    write_text(folder / "README.md", text)


def render(result: DemoRecord) -> Table:
    """Both tables and the notes, one below the other."""
    page = Table.grid(padding=(0, 0, 1, 0))
    page.add_row("\n".join(story(result)))
    narrow = [[row[0], *row[2:]] for row in _retrieval(result)]  # theta is in the text above
    page.add_row(_rich("Questions answered, by length of the row", narrow))
    page.add_row(_rich("NLL of plain prose (nats a word), by position", _prose(result)))
    page.add_row(Text("\n".join(f"* {line}" for line in notes(result)), style="dim"))
    if result.seconds is not None:
        text = f"{result.seconds.wall:.0f} s, {result.seconds.cpu:.0f} s of CPU"
        page.add_row(Text(text, style="dim"))
    return page


def story(result: DemoRecord) -> list[str]:
    """The steps and the result in sentences."""
    plan, models = result.hyperparameters, result.models
    longest = plan.lengths[-1]
    graft = f"graft, rank {plan.ranks[-1]}"

    def needle(name: str) -> float:
        return models[name].needle[longest]

    return [
        f"A base was trained at {plan.trained} tokens and extended to {plan.target} with "
        f"theta {result.theta.trained:.0f} -> {result.theta.target:.0f}.",
        f"A derivative of the base learned to shout, at {plan.trained} tokens. Then: "
        "extract-lora, apply.",
        f"At {longest} tokens the derivative answers {needle('derivative'):.0%} of questions, with "
        f"the new theta alone {needle('derivative, theta only'):.0%}, grafted {needle(graft):.0%}; "
        f"its skill went from {models['derivative'].shout[plan.trained]:.0%} to "
        f"{models[graft].shout[plan.trained]:.0%}.",
    ]


def notes(result: DemoRecord) -> list[str]:
    """Notes that a reader needs to judge the numbers."""
    plan = result.hyperparameters
    counts = ", ".join(f"{needle_count(length)} at {length}" for length in plan.lengths)
    return [
        f"A toy: {result.parameters / 1000:.0f}k parameters, 2 layers, a vocabulary of "
        f"{len(WORDS)} whole words; trained just now from seed {result.seed}, stored in float32.",
        "Embeddings start at a standard deviation of 0.4, two heads of the first layer start by "
        "looking one word and two words back, and the base trains with Muon: all three so that "
        "it discovers soon how to look things up. The fine-tunes use AdamW.",
        f"The base took {result.base_steps} steps; after about 120 it discovers, suddenly, how "
        "to look things up. Each model's recipe is in recipes/, its curve in its own folder.",
        f"Theta {plan.theta:.0f} is to {plan.trained} tokens what 500000 is to Llama 3's "
        "8192; the longer one follows from the scaling law.",
        f"Needles in a row: {counts}, and 4 in the sparse rows, which are easier: fewer keys to "
        f"confuse. All are asked for at the end, {plan.questions} questions a cell. Both words "
        "of a value must be right; naming one of the row's values at random scores 1 in so many.",
        "Control: 'theta only' is the derivative's own weights with the extended model's RoPE and "
        "length.",
        "The extended model trained its layers only, not embedding, head and last norm. The "
        "adapters hold the projections in bfloat16; what the norms learned is left behind.",
        "Every model and its tokenizer were built by transformers from its folder.",
    ]


def draw(path: Path, result: DemoRecord) -> None:
    """Draw the questions answered by length and the NLL of prose by position."""
    plan, models = result.hyperparameters, result.models
    lengths = plan.lengths
    with drawing.figure(path, 2, width=5.0, height=3.9) as (left, right):
        for style, (name, exam) in zip(drawing.styles(), models.items(), strict=False):
            left.plot(lengths, [exam.needle[length] for length in lengths], label=name, **style)
            right.plot(lengths, list(exam.prose_nll.values()), label=name, **style)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.axvline(plan.trained, color="0.6", linewidth=0.8)
        left.set(ylim=(-0.03, 1.05), xlabel="length of the row", ylabel="questions answered")
        right.set(xlabel="position up to", ylabel="NLL of prose, nats a word")
        right.legend(fontsize=8)


def _retrieval(result: DemoRecord) -> list[list[str]]:
    plan = result.hyperparameters
    trained, target = plan.trained, plan.target
    lengths = [*map(str, plan.lengths), f"{target} sparse"]
    head = ["model", "theta", *lengths, f"shout {trained}", f"shout {target}"]
    return [head] + [
        [
            name,
            f"{exam.theta:.0f}",
            *(f"{exam.needle[length]:.2f}" for length in plan.lengths),
            f"{exam.sparse_needle:.2f}",
            f"{exam.shout[trained]:.2f}",
            f"{exam.shout[target]:.2f}",
        ]
        for name, exam in result.models.items()
    ]


def _prose(result: DemoRecord) -> list[list[str]]:
    models = result.models
    head = ["model", *models["base"].prose_nll]
    return [head] + [
        [name, *(f"{nll:.3f}" for nll in exam.prose_nll.values())] for name, exam in models.items()
    ]


def _rich(title: str, cells: list[list[str]]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
    )
    for number, name in enumerate(cells[0]):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in cells[1:]:
        table.add_row(*row)
    return table
