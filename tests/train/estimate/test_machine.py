"""Devices of an estimate: names, memory beyond live tensors, the measured rate of a CPU."""

from __future__ import annotations

import pytest

from regraft.errors import InputError
from regraft.train.estimate import machine
from regraft.train.estimate.machine import GIB, parse_machine


def test_memory_beyond_live_tensors_is_what_an_h100_had():
    """GiB that the driver counted beside the live tensors of 32 layers at 64k tokens: 3.6; with
    several processes also NCCL's."""
    one, eight = parse_machine("H100", None), parse_machine("8xH100", None)
    assert one.overhead / GIB == pytest.approx(50.44 - 46.82, abs=0.3)
    assert (eight.overhead - one.overhead) / GIB == pytest.approx(1132 / 1024)


def test_the_rate_of_this_cpu_is_measured():
    assert 1e6 < machine.cpu_rate(64, 64) < 1e15


@pytest.mark.parametrize("text", ["8xH1000", "x", "0xH100", ""])
def test_unknown_devices_are_refused(text):
    with pytest.raises(InputError, match="known are B200"):
        parse_machine(text, None)
