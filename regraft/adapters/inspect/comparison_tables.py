"""The tables of two compared folders: checkpoints, adapters, or an adapter and a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.adapters.inspect.comparisons import (
    AdapterComparison,
    CheckpointComparison,
    GraftInspection,
    IntruderFigures,
    SampledBase,
)
from regraft.adapters.inspect.formatting import (
    arrow,
    change_cells,
    column_table,
    cosine,
    count,
    decimal,
    names_list,
    note,
    pairs_table,
    percent,
    role_distances,
    spectrum_cells,
    with_revision,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

BAR_WIDTH = 16  # characters of the longest bar


def checkpoints_tables(result: CheckpointComparison) -> list[Table | Text]:
    """The tables of two compared models."""
    total, context = result.total, result.context
    lines = [
        ("first", with_revision(result.first.name, result.first.revision)),
        ("second", with_revision(result.second.name, result.second.revision)),
        ("relation", _relation(result)),
        ("context", arrow(context.first_text, context.second_text)),
    ]
    if total.tensors:
        lines += [
            (
                "change",
                f"norm {total.delta_norm:.4g}, {percent(total.relative_delta)} of the "
                f"first's weights, cosine {cosine(total.cosine)}",
            ),
            ("changed", f"{total.changed} of {count(total.tensors, 'tensor')}"),
        ]
    if total.above_noise is not None:
        lines.append(("above rounding", f"{total.above_noise:.1%} of the change's energy"))
    lines += [
        ("vocabulary", f"{abs(n)} rows {'added' if n > 0 else 'removed'} ({name})")
        for name, n in result.rows_added.items()
    ]
    blocks: list[Table | Text] = [pairs_table("Two checkpoints", lines)]
    headings = ["tensors", "changed", "norm", "relative", "cosine"]
    if result.roles:
        roles = column_table("By role", ["role", *headings])
        for role, row in result.roles.items():
            roles.add_row(role, str(row.tensors), str(row.changed), *change_cells(row))
        blocks.append(roles)
    matrices = ["effective rank", "above rounding"]
    if result.leaves and total.changed:
        leaves = column_table("By kind of matrix", ["matrix", "count", "relative", *matrices])
        for leaf, row in result.leaves.items():
            leaves.add_row(
                leaf, str(row.tensors), percent(row.relative_delta), *spectrum_cells(row)
            )
        blocks.append(leaves)
    if result.layers and total.changed:
        layers = column_table(
            "By layer", ["layer", "norm", "relative", "cosine", "above rounding", ""]
        )
        largest = max(row.relative_delta or 0.0 for row in result.layers.values())
        for layer, row in result.layers.items():
            share = (row.relative_delta or 0.0) / largest if largest else 0.0
            layers.add_row(
                layer, *change_cells(row), spectrum_cells(row)[1], "━" * round(BAR_WIDTH * share)
            )
        layers.columns[-1].justify = "left"
        blocks.append(layers)
    if total.changed and result.leaves:
        blocks.append(
            note(
                "Effective rank: of D = second - first, ||D||⁴ / ||D'D||², smallest to largest; "
                "n equal singular values give n.\nAbove rounding: share of ||D||² that rounding "
                "both checkpoints to their stored dtypes cannot explain."
            )
        )
    blocks += _intruders(result.intruders)
    for title, names in (
        ("Only in the first", result.only_in_first),
        ("Only in the second", result.only_in_second),
        ("In both, but with other shapes or dtypes", list(result.not_comparable)),
    ):
        if names:
            blocks.append(names_list(title, names))
    return blocks


def _relation(result: CheckpointComparison) -> str:
    """The verdict in words: from the sampled weights, corrected by the comparison of all
    weights."""
    total = result.total
    unmatched = result.only_in_first or result.only_in_second or result.not_comparable
    if not total.tensors:
        return "unknown: no tensor has the same name and shape in both"
    if not total.changed and not unmatched and not result.rows_added:
        return "the same weights (all compared)"
    if result.relation.verdict == "stranger":
        return "strangers: the weights are unrelated"
    return "relatives: one was made from the other, or both from the same model"


def adapter_on_checkpoint_tables(result: GraftInspection) -> list[Table | Text]:
    """The tables of an adapter and a checkpoint."""
    context, relation = result.context, result.relation
    lines = [
        ("adapter", result.adapter),
        ("checkpoint", result.checkpoint),
        (
            "modules fit",
            f"yes, {count(result.changed_tensors, 'tensor')} of {result.tensors} would change"
            if result.fits and result.changed_tensors is not None
            else ("yes" if result.fits else "no"),
        ),
    ]
    if relation:
        lines.append(("distance from its base", role_distances(relation.roles)))
        lines.append(("relation", relation.verdict))
    elif result.fits:
        lines.append(("distance from its base", "unknown: the adapter has no sample of it"))
    lines.append(("checkpoint's context", context.checkpoint))
    if context.adapter_base and context.adapter_extended:
        lines.append(("adapter's context", arrow(context.adapter_base, context.adapter_extended)))
    if context.output:
        lines.append(("context after apply", f"{context.output} (the {context.policy}'s)"))
    elif result.fits:
        lines.append(("context after apply", "undecided"))
    lines.append(("regraft apply", "would succeed" if not result.refused else "would refuse:"))
    lines += [("", sentence) for sentence in result.refused]
    lines += [("warning", sentence) for sentence in result.warnings]
    return [pairs_table("An adapter and a checkpoint", lines), *_intruders(result.intruders)]


def _intruders(figures: IntruderFigures | None) -> list[Table | Text]:
    """The table of intruder directions, if they were counted."""
    if figures is None:
        return []
    table = column_table(
        "Intruder directions", ["matrix", "count", "with some", "intruders", "lowest cosine"]
    )
    for leaf, row in figures.leaves.items():
        table.add_row(
            leaf, str(row.modules), str(row.with_intruders), str(row.intruders),
            decimal(row.lowest_cosine),
        )  # fmt: skip
    text = (
        f"{figures.intruders} of the {figures.directions} leading singular vectors of each matrix "
        f"after the change have a cosine below {figures.threshold:g} with each of the "
        f"{figures.against} leading ones before it.\nModels with many forget more (arXiv "
        "2410.21228)."
    )
    return [table, note(text)]


def adapters_tables(result: AdapterComparison) -> list[Table | Text]:
    """The tables of two compared adapters."""
    base, total = result.base, result.total
    same = {True: "the same", False: "different", None: "unknown"}[base.same]
    distance = ""
    if isinstance(base, SampledBase) and base.distance:
        distance = f", {percent(base.distance)} apart"
    lines = []
    for position, one in (("first", result.first), ("second", result.second)):
        lines.append((position, f"{one.name}, {count(one.modules, 'module')}"))
        lines.append(("", f"{one.context or 'no context'}, on {one.base or 'an unnamed base'}"))
    lines.append(("base", f"{same} (by {base.how}){distance}"))
    if result.context_same is not None:
        lines.append(("context", "the same" if result.context_same else "different"))
    lines.append(("shared modules", str(total.modules)))
    blocks: list[Table | Text] = [pairs_table("Two adapters", lines)]
    if total.modules:
        leaves = column_table(
            "The changes", ["module", "count", "norm", "other", "cosine", "overlap", "by chance"]
        )
        for leaf, row in [*result.leaves.items(), ("all", total)]:
            leaves.add_row(
                leaf, str(row.modules), f"{row.norm:.4g}", f"{row.other_norm:.4g}",
                cosine(row.cosine), decimal(row.overlap), decimal(row.by_chance),
            )  # fmt: skip
        blocks += [leaves, note(f"Overlap: {result.definitions['overlap']}.")]
    for title, names in (
        ("Only in the first", result.only_in_first),
        ("Only in the second", result.only_in_second),
        ("In both, but with other shapes", result.other_shape),
    ):
        if names:
            blocks.append(names_list(title, names))
    return blocks
