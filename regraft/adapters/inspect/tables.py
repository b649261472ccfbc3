"""The result of `regraft inspect` as tables: rich's, without lines, at home in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from regraft.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_LISTED = 8  # names shown of a longer list; the JSON has all
_BAR = 16  # characters of the longest bar


def tables(result: Mapping[str, Any]) -> list[Table | Text]:
    """The result of `inspect` for people: rich tables and lines that fit 80 columns."""
    shown = {
        "adapter": _adapter,
        "adapters": _adapters,
        "checkpoints": _checkpoints,
        "checkpoint and adapter": _fit,
    }
    return shown.get(result["kind"], _checkpoint)(result)


# One folder.


def _checkpoint(found: Mapping[str, Any]) -> list[Table | Text]:
    what = {"checkpoint": "Checkpoint", "graft": "Graft", "merge": "Merge"}[found["kind"]]
    dtypes = ", ".join(f"{name} ({count})" for name, count in found["dtypes"].items())
    context, limit = found["context"], found["tokenizer_max_length"]
    lines = [
        ("architecture", f"{found['architecture'] or '?'} ({found['model_type']})"),
        ("parameters", f"{found['parameters']:,} in {format_bytes(found['bytes'])}"),
        ("stored as", f"{dtypes}, {_count(found['shards'], 'shard')}"),
        (
            "shape",
            f"{found['layers']} layers, hidden {found['hidden_size']}, {found['heads']} heads of "
            f"{found['head_dim']}, {found['kv_heads']} kv heads",
        ),
        (
            "vocabulary",
            f"{found['vocabulary']:,}, head {'tied to the embedding' if found['tied'] else 'own'}"
            if found["vocabulary"]
            else "?",
        ),
    ]
    lines.append(("context", found["context_text"]))
    if context is not None:
        if context["longest_wavelength"]:
            lines.append(
                ("longest wavelength", f"{context['longest_wavelength']:,.0f} tokens a turn")
            )
        if limit and limit < context["max_position_embeddings"]:
            lines.append(
                (
                    "tokenizer",
                    f"truncates at {limit:,} tokens (model_max_length), below the context",
                )
            )
    if found["revision"]:
        lines.append(("revision", found["revision"]))
    lines.append(("fingerprint", found["fingerprint"] or "not taken of a Hub model"))
    roles = _table("Tensors", ["role", "tensors", "parameters"])
    for role, row in found["roles"].items():
        roles.add_row(role, f"{row['tensors']:,}", f"{row['parameters']:,}")
    shown: list[Table | Text] = [_pairs(f"{what} {found['name']}", lines), roles]
    if "made" in found:
        shown.insert(1, _pairs("\nMade from", found["made"]["lines"]))
    if found["unknown_tensors"]:
        shown.append(_names("Tensors the architecture has no place for", found["unknown_tensors"]))
    return shown


def _adapter(found: Mapping[str, Any]) -> list[Table | Text]:
    alpha = f"alpha {found['lora_alpha']:g}" if found["lora_alpha"] is not None else "alpha 8"
    scaling = _range(found["scaling_min"] or 0, found["scaling_max"] or 0, "{:.4g}")
    lines = [("base", _revised(found["base"], found["base_revision"]))]
    if found["method"]:
        lines.append(("merged", f"by {found['method']} from {', '.join(found['merged_from'])}"))
    elif found["extended"]:
        lines.append(("extracted from", found["extended"]))
    lines += [
        (
            "rank",
            f"{_range(found['rank_min'], found['rank_max'], '{}')}, {alpha}, scaling {scaling}"
            f"{' (rsLoRA)' if found['rslora'] else ''}",
        ),
        (
            "size",
            f"{format_bytes(found['bytes'])}, {found['parameters']:,} parameters, "
            f"{', '.join(found['dtypes'])}"
            + (f", layout {found['layout']}" if found["layout"] else ""),
        ),
        ("norm of the change", f"{found['change_norm']:.4g}"),
    ]
    if found["context"]:
        both = found["context"]
        lines.append(("context", _arrow(both["base"]["text"], both["extended"]["text"])))
    else:
        lines.append(("context", "not carried: give --context when you apply it"))
    totals = found["totals"] or {}
    if "error" in totals:
        what = "merged" if found["method"] else "projections'"
        lines.append(("error", f"{totals['error']:.4f} of the {what} change"))
    if totals.get("signal_captured") is not None:
        share = f"{totals['signal_captured']:.1%} of it in the adapter"
        lines.append(("above rounding", f"{totals['signal']:.1%} of the change's energy; {share}"))
    lines += [
        ("not captured", f"{role}: {fact['changed']} tensors, "
         f"{fact['share_of_all_change']:.2%} of all change")
        for role, fact in (found["not_captured"] or {}).items() if fact["changed"]
    ]  # fmt: skip
    if found["differences"]:
        lines.append(("beside the factors", _count(len(found["differences"]), "dense difference")))
    if found["replaced"]:
        lines.append(("replaced whole", ", ".join(found["replaced"])))
    lines += [(f"loads in {reader}", how) for reader, how in found["readers"].items()]
    leaves = _table(
        "Modules", ["module", "count", "rank", "effective rank", "parameters", "norm of change"]
    )
    for leaf, row in found["leaves"].items():
        leaves.add_row(
            leaf, str(row["modules"]), _range(row["rank_min"], row["rank_max"], "{}"),
            _range(row["effective_rank_min"], row["effective_rank_max"], "{:.1f}"),
            f"{row['parameters']:,}", f"{row['change_norm']:.4g}",
        )  # fmt: skip
    return [_pairs(f"Adapter {found['name']}", lines), leaves]


# Two folders.


def _checkpoints(found: Mapping[str, Any]) -> list[Table | Text]:
    total, context = found["total"], found["context"]
    lines = [
        ("first", _revised(found["first"]["name"], found["first"]["revision"])),
        ("second", _revised(found["second"]["name"], found["second"]["revision"])),
        ("relation", _relation(found)),
        ("context", _arrow(context["first_text"], context["second_text"])),
    ]
    if total["tensors"]:
        lines += [
            (
                "change",
                f"norm {total['delta_norm']:.4g}, {_percent(total['relative_delta'])} of the "
                f"first's weights, cosine {_cosine(total['cosine'])}",
            ),
            ("changed", f"{total['changed']} of {_count(total['tensors'], 'tensor')}"),
        ]
    if total["above_noise"] is not None:
        lines.append(("above rounding", f"{total['above_noise']:.1%} of the change's energy"))
    lines += [
        ("vocabulary", f"{abs(n)} rows {'added' if n > 0 else 'removed'} ({name})")
        for name, n in found["rows_added"].items()
    ]
    shown: list[Table | Text] = [_pairs("Two checkpoints", lines)]
    headings = ["tensors", "changed", "norm", "relative", "cosine"]
    if found["roles"]:
        roles = _table("By role", ["role", *headings])
        for role, row in found["roles"].items():
            roles.add_row(role, str(row["tensors"]), str(row["changed"]), *_change(row))
        shown.append(roles)
    matrices = ["effective rank", "above rounding"]
    if found["leaves"] and total["changed"]:
        leaves = _table("By kind of matrix", ["matrix", "count", "relative", *matrices])
        for leaf, row in found["leaves"].items():
            leaves.add_row(
                leaf, str(row["tensors"]), _percent(row["relative_delta"]), *_spectrum(row)
            )
        shown.append(leaves)
    if found["layers"] and total["changed"]:
        layers = _table("By layer", ["layer", "norm", "relative", "cosine", "above rounding", ""])
        largest = max(row["relative_delta"] or 0.0 for row in found["layers"].values())
        for layer, row in found["layers"].items():
            share = (row["relative_delta"] or 0.0) / largest if largest else 0.0
            layers.add_row(layer, *_change(row), _spectrum(row)[1], "━" * round(_BAR * share))
        layers.columns[-1].justify = "left"
        shown.append(layers)
    if total["changed"] and found["leaves"]:
        shown.append(
            _note(
                "Effective rank: of D = second - first, ||D||⁴ / ||D'D||², smallest to largest; "
                "n equal singular values give n.\nAbove rounding: share of ||D||² beyond what "
                "storing both checkpoints can have made."
            )
        )
    for title, key in (
        ("Only in the first", "only_in_first"),
        ("Only in the second", "only_in_second"),
        ("In both, but not to be subtracted", "not_comparable"),
    ):
        if found[key]:
            shown.append(_names(title, found[key]))
    return shown


def _relation(found: Mapping[str, Any]) -> str:
    """The verdict of the samples in words, corrected by what the whole reading found."""
    total = found["total"]
    odd = any(found[key] for key in ("only_in_first", "only_in_second", "not_comparable"))
    if not total["tensors"]:
        return "none to be seen: no tensor of one name and shape in both"
    if not total["changed"] and not odd and not found["rows_added"]:
        return "the same weights, every one compared"
    if found["relation"]["verdict"] == "stranger":
        return "strangers: the weights have nothing in common"
    return "relatives: one was made from the other, or both from a third"


def _fit(found: Mapping[str, Any]) -> list[Table | Text]:
    context, relation = found["context"], found["relation"]
    lines = [
        ("adapter", found["adapter"]),
        ("checkpoint", found["checkpoint"]),
        (
            "modules fit",
            f"yes, {_count(found['changed_tensors'], 'tensor')} of {found['tensors']} would change"
            if found["fits"] and found["changed_tensors"] is not None
            else ("yes" if found["fits"] else "no"),
        ),
    ]
    if relation:
        lines.append(("distance from its base", _roles(relation["roles"])))
        lines.append(("relation", relation["verdict"]))
    elif found["fits"]:
        lines.append(("distance from its base", "unknown: the adapter carries no sample of it"))
    lines.append(("checkpoint's context", context["checkpoint"]))
    if context["adapter_extended"]:
        lines.append(
            ("adapter's context", _arrow(context["adapter_base"], context["adapter_extended"]))
        )
    if context["output"]:
        lines.append(("context after apply", f"{context['output']} (the {context['policy']}'s)"))
    elif found["fits"]:
        lines.append(("context after apply", "undecided"))
    lines.append(("regraft apply", "would go through" if not found["refused"] else "would refuse:"))
    lines += [("", sentence) for sentence in found["refused"]]
    lines += [("warning", sentence) for sentence in found["warnings"]]
    return [_pairs("An adapter and a checkpoint", lines)]


def _adapters(found: Mapping[str, Any]) -> list[Table | Text]:
    base, total = found["base"], found["total"]
    same = {True: "the same", False: "different", None: "unknown"}[base["same"]]
    far = f", {_percent(base['distance'])} apart" if base.get("distance") else ""
    lines = []
    for which in ("first", "second"):
        one = found[which]
        lines.append((which, f"{one['name']}, {_count(one['modules'], 'module')}"))
        lines.append(
            ("", f"{one['context'] or 'no context'}, on {one['base'] or 'an unnamed base'}")
        )
    lines.append(("base", f"{same} (by {base['how']}){far}"))
    if found["context_same"] is not None:
        lines.append(("context", "the same" if found["context_same"] else "different"))
    lines.append(("shared modules", str(total["modules"])))
    shown: list[Table | Text] = [_pairs("Two adapters", lines)]
    if total["modules"]:
        leaves = _table(
            "The changes", ["module", "count", "norm", "other", "cosine", "overlap", "by chance"]
        )
        for leaf, row in [*found["leaves"].items(), ("all", total)]:
            leaves.add_row(
                leaf, str(row["modules"]), f"{row['norm']:.4g}", f"{row['other_norm']:.4g}",
                _cosine(row["cosine"]), _number(row["overlap"]), _number(row["by_chance"]),
            )  # fmt: skip
        shown += [leaves, _note(f"Overlap: {found['definitions']['overlap']}.")]
    for title, key in (
        ("Only in the first", "only_in_first"),
        ("Only in the second", "only_in_second"),
        ("In both, with other shapes", "other_shape"),
    ):
        if found[key]:
            shown.append(_names(title, found[key]))
    return shown


# How things are written.


def _pairs(title: str, lines: Iterable[Iterable[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", title_style="bold", show_header=False,
        box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines:
        table.add_row(Text(label), Text(text))
    return table


def _table(title: str, headings: list[str]) -> Table:
    from rich.table import Table

    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None,
        padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0)
    return table


def _note(text: str) -> Text:
    from rich.text import Text

    return Text(f"\n{text}", style="dim")


def _names(title: str, names: Iterable[str]) -> Text:
    from rich.text import Text

    found = list(names)
    more = f"\n  and {len(found) - _LISTED} more (--json has all)" if len(found) > _LISTED else ""
    lines = "".join(f"\n  {name}" for name in found[:_LISTED])
    return Text.assemble("\n", (title, "bold"), f" ({len(found)}){lines}{more}")


def _arrow(before: str, after: str) -> str:
    return f"{before}  ->  {after}" if before != after else f"{after} (both)"


def _change(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{row['delta_norm']:.4g}", _percent(row["relative_delta"]), _cosine(row["cosine"])


def _spectrum(row: Mapping[str, Any]) -> tuple[str, str]:
    share = row["above_noise"]
    ranks = "-"
    if row.get("effective_rank_max"):
        ranks = _range(row["effective_rank_min"], row["effective_rank_max"], "{:.1f}")
    return ranks, "-" if share is None else f"{share:.1%}"


def _range(low: float, high: float, form: str) -> str:
    least, most = form.format(low), form.format(high)
    return least if least == most else f"{least} to {most}"


def _roles(roles: Mapping[str, Any]) -> str:
    return ", ".join(f"{role} {_percent(fact['distance'])}" for role, fact in roles.items())


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share:.2%}" if share >= 1e-3 or share == 0 else f"{100 * share:.2g}%"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _revised(name: str | None, revision: str | None) -> str:
    return f"{name or 'not named'}{f' @ {revision[:12]}' if revision else ''}"
