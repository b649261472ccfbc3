"""The attention kernel that is chosen for a device."""

from __future__ import annotations

from numerics import check_chosen_kernel


def test_the_chosen_kernel_runs():
    """Also under other instruction sets, in lowrank/test_certificate.py."""
    check_chosen_kernel()
