"""The evaluations of a run: several models in one command, which then makes the prompts once.

Each group waits until its models are there or have failed, and leaves out those that failed. A
model without scores after that, such as those of a group that one broken model ended, is evaluated
alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from smollm2.jobs import Job
from smollm2.recipes import Size

GROUPS = (  # in the order of their value, if time should run out
    ("derivative", "theta-only", "extended"),
    ("graft-8", "graft-128", "full-delta"),
    ("graft-8-calibrated", "graft-128-calibrated", "graft-32-calibrated"),
    ("graft-128-negated", "graft-128-shuffled", "graft-auto"),
    ("graft-128-recovered", "graft-128-pose", "graft-128-exact"),
    ("base", "pose", "full-delta-pose"),
    ("graft-32", "graft-128-guarded"),
)
_SKILL_GROUP = 6  # models beside the derivative, which each group needs for the drift


def score_folders(out: Path) -> list[Path]:
    """The finished evaluations of needles and NLL."""
    return sorted(path.parent for path in (out / "scores").glob("*/result.json"))


def skill_folders(out: Path) -> list[Path]:
    """The finished evaluations of skill and drift."""
    return sorted(path.parent for path in out.glob("skill*/result.json"))


def evaluations(out: Path, size: Size, models: Collection[str], device: str) -> Iterator[Job]:
    """Needles and NLL of the models, then skill and drift from the derivative."""
    common = [
        "--haystack", str(out / "texts" / "held-out.txt"), "--questions-per-text",
        str(size.questions_per_text), "--resume", "--device", device,
    ]  # fmt: skip
    lengths = ",".join(map(str, size.lengths))
    scores = ["--suite", "needle,perplexity", "--texts", str(size.texts)]
    scores += ["--items", str(size.items), "--lengths", lengths, *common]
    groups = [[name for name in group if name in models] for group in GROUPS]
    for names in filter(None, groups):
        target = out / "scores" / f"of-{names[0]}"
        yield _group(out, f"scores-of-{names[0]}", names, target, scores)
    for names in filter(None, groups):
        for name in names:
            yield _alone(out, name, f"scores-of-{names[0]}", scores)
    skill = ["--suite", "drift,reversal", "--lengths", f"{size.skill_length},{size.target}"]
    skill += ["--items", str(size.items // 2), *common]
    others = [name for names in groups for name in names if name != "derivative"]
    for start in range(0, len(others) if "derivative" in models else 0, _SKILL_GROUP):
        names = ["derivative", *others[start : start + _SKILL_GROUP]]
        target = out / f"skill-of-{names[1]}"
        yield _group(out, target.name, names, target, skill, needs=names[:1])


def _group(
    out: Path, job: str, names: list[str], target: Path, more: list[str], needs: Sequence[str] = ()
) -> Job:
    def line() -> list[str] | None:
        there = [f"{name}={out / name}" for name in names if (out / name).is_dir()]
        return ["evaluate", *there, "-o", str(target), *more] if there else None

    return Job(job, line, target, tuple(needs), tuple(names), heavy=True)


def _alone(out: Path, name: str, group: str, more: list[str]) -> Job:
    target = out / "scores" / name

    def line() -> list[str] | None:
        from regraft.evaluate.result import read_result

        if any(name in read_result(folder).models for folder in score_folders(out)):
            return None
        return ["evaluate", f"{name}={out / name}", "-o", str(target), *more]

    return Job(f"score-{name}", line, target, (name,), (group,), heavy=True)
