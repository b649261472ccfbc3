"""The parts of the qualification, in order of their value."""

from __future__ import annotations

from dataclasses import dataclass

MACHINE = 60.0  # seconds for CUDA to start in a first process


@dataclass(frozen=True)
class Part:
    """name: for --part. function: module and name in `qualification`. seconds, quick: time limits
    in full and with --quick, which leaves out parts where it is 0."""

    name: str
    function: str
    seconds: float
    quick: float = 0.0


PARTS = (
    Part("kernels", "kernels:check_kernels", 60, 25),
    Part("nccl", "distributed:check_distributed", 40, 25),
    Part("step", "step:check_step", 60, 30),
    Part("fused", "fused:check_fused_kernels", 40, 20),
    Part("offload", "offload:check_offload", 40, 20),
    Part("extract", "extraction:check_extraction", 90, 35),
    Part("merge", "commands:check_merge", 60, 30),
    Part("constants", "machine:measure_constants", 25, 15),
    Part("4bit", "four_bit:check_four_bit", 75, 40),
    Part("64k", "lengths:measure_64k", 100),
    Part("profile", "profile:profile_step", 40),
    Part("levers", "lengths:measure_levers", 110, 30),
    Part("long", "lengths:measure_long_rows", 100),
    Part("longest", "lengths:measure_longest", 90),
    Part("evaluate", "evaluation:check_evaluation", 70),
    Part("wide", "kernels:check_long_rows", 50),
    Part("128k", "lengths:measure_128k", 100),
)


FIRST = Part("machine", "machine:describe_machine", MACHINE, MACHINE)
