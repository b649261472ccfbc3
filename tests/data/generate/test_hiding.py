"""Needles get to their depths, in few comparisons each."""

from __future__ import annotations

from regraft.data.generate.hiding import hide


class Counted(float):
    """A depth whose comparisons with places are counted."""

    comparisons = 0

    def __mul__(self, other: float) -> Counted:
        return Counted(float(self) * other)

    def __lt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) < other

    def __ge__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float(self) >= other


def test_needles_are_before_the_piece_at_their_depth() -> None:
    pieces = ["aaaa", "bbbb", "cc"]
    assert hide(pieces, ["1", "2", "3", "4"], [0, 0.4, 0.79, 1]) == "1aaaa23bbbbcc4"
    assert hide(pieces, ["1", "2"], [0.5, 0.5]) == "aaaa12bbbbcc"


def test_a_long_text_is_searched_in_logarithmic_time() -> None:
    depths = [Counted(number / 50) for number in range(50)]
    hide(["a"] * 1000, ["b"] * 50, depths)
    assert Counted.comparisons <= 50 * 11
