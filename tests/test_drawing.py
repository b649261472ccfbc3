"""Figures: nothing cut, the same bytes twice."""

from __future__ import annotations

import pytest

from regraft.drawing import figure, from_zero, logarithmic, styles


@pytest.mark.parametrize("values", [[0.1, 0.4, 0.3], [0.0, 0.0, 0.0]])
def test_the_highest_marker_is_not_cut(values, tmp_path):
    with figure(tmp_path / "f.png") as axes:
        axes.plot(values, **next(styles()))
        from_zero(axes)
        low, high = axes.get_ylim()
    assert low == 0
    assert high >= 1.07 * max(values)
    assert high > 0


def test_a_figure_drawn_twice_has_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        with figure(tmp_path / name, 2) as (left, right):
            left.plot([1, 2], label="a")
            right.plot([2, 1])
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "two.png").read_bytes()
    assert one.startswith(b"\x89PNG")


@pytest.mark.parametrize("values", [[0.03, 0.2], [1e-6, 0.01, 50.0]])
def test_logarithmic_axes_have_plain_numbers(values, tmp_path):
    with figure(tmp_path / "f.png") as axes:
        axes.plot(range(1, len(values) + 1), values)
        logarithmic(axes)
        axes.figure.draw_without_rendering()
        labels = [
            label.get_text()
            for which in (False, True)
            for axis in (axes.xaxis, axes.yaxis)
            for label in axis.get_ticklabels(minor=which)
        ]
    assert len([label for label in labels if label]) >= 4
    assert all(float(label) > 0 for label in labels if label)
