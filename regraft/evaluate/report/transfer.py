"""What a graft gained and preserved: transfer, retention and effective length from scores.

With R the recipient, R' the recipient with only the donor's RoPE, D the donor, G the graft:

    transfer         T  = (G - R)  / (D - R)
    weight transfer  Tw = (G - R') / (D - R')      what the weights did beyond the RoPE
    retention        K  = G / R                    within the recipient's own context

and the same for the recovered graft. All are ratios of scores on the same items, see `statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.evaluate.result import EffectiveLength
from regraft.evaluate.statistics import Ratio, average, mean, quotient, ratio, score_interval

RULER_THRESHOLD = 0.856  # Llama-2-7B-chat at 4096 tokens (arXiv 2404.06654)
SELF_THRESHOLD = 0.85  # of the model's own shortest length, as NoLiMa does (arXiv 2502.05167)
SHORT = 3  # times the shortest length: LongScore's short lengths, as its 2k, 4k and 6k


def effective_length(scores: Mapping[int, float], error: float = 0.0) -> EffectiveLength:
    """The greatest length at which, and at all shorter ones, the score reaches a threshold.

    scores: by length. error: the standard error of the score at the shortest length; a model whose
    score there is within two of them of 0 has no effective length by its own threshold.
    """
    lengths = sorted(scores)
    own = SELF_THRESHOLD * scores[lengths[0]]

    def reached(threshold: float) -> int | None:
        longest = None
        for length in lengths:
            if scores[length] < threshold:
                break
            longest = length
        return longest

    return EffectiveLength(
        ruler=reached(RULER_THRESHOLD),
        own=reached(own) if scores[lengths[0]] > 2 * error else None,
    )


def long_score(
    scores: Mapping[int, Sequence[float]], texts: Mapping[int, Sequence[int] | None]
) -> dict[int, Ratio | None]:
    """(S - base) / base at each length beyond the short ones (LongScore, arXiv 2505.19293).

    base: the mean of the means at the short lengths, those up to `SHORT` times the shortest, each
    length with the same weight whatever its items; its interval is of that mean, too. scores, and
    the `texts` of each (see `statistics`): by length. None if the base is too near 0 to divide by.
    """
    means = {length: mean(scores[length]) for length in sorted(scores)}
    bounds = {length: score_interval(scores[length], texts=texts[length]) for length in means}
    short = [length for length in means if length <= SHORT * min(means)]
    each = [means[length] for length in short]
    base, interval = mean(each), average(each, [bounds[length] for length in short])
    result: dict[int, Ratio | None] = {}
    for length in means:
        if length not in short:
            relative = quotient(means[length], bounds[length], base, interval)
            result[length] = relative and Ratio(
                relative.value - 1, relative.low - 1, relative.high - 1
            )
    return result


def compare(
    scores: Mapping[str, Sequence[float]],
    *,
    within: bool,
    skill: bool,
    texts: Sequence[int] | None = None,
) -> dict[str, Ratio | None]:
    """The ratios of one cell by name, such as 'transfer graft'.

    scores: of each role and graft, item by item. within: the length is within the recipient's own
    context, so there is something to retain. skill: the task does not measure the use of context,
    so it has no transfer. texts: the text of each item, see `statistics`.
    """
    ratios: dict[str, Ratio | None] = {}
    recipient, donor = scores["recipient"], scores["donor"]
    for role in scores:
        if role in ("recipient", "theta only", "donor"):
            continue
        if not skill:
            ratios[f"transfer {role}"] = ratio(
                scores[role], recipient, donor, recipient, texts=texts
            )
            rope_only = scores["theta only"]
            ratios[f"weight transfer {role}"] = ratio(
                scores[role], rope_only, donor, rope_only, texts=texts
            )
        if within:
            ratios[f"retention {role}"] = ratio(scores[role], None, recipient, None, texts=texts)
    return ratios
