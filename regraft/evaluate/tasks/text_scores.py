"""The scores of published suites for free answers, from 0 to 1, the best over the references.

ZeroSCROLLS (arXiv 2305.14196, section 3.3): `f1` of words, `rouge` (the geometric mean of ROUGE-1,
-2 and -L, each the best over the references), `letter` of a choice, `percentage` (halved with every
10 points of error) and `order` (pairs in the right order; 0 if it is not a permutation).
LooGLE (arXiv 2311.04939): `rouge_l` (its recall, over the whole answer) and `cloze` (masks filled
exactly). BAMBOO (arXiv 2309.13345): `letter`, `order`, `same` (the first line, except case and full
stop) and `verdict` (yes, or else no), over all items also as precision and recall.
"""

from __future__ import annotations

import ast
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from typing import Any

from regraft.errors import InputError
from regraft.input_files import JsonObject

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LETTER = re.compile(r"\b[A-D]\b")
_PERCENTAGE = re.compile(r"(\d+\.?\d*)%")
_BRACES = re.compile(r"\{.*?\}", re.DOTALL)
Metric = Callable[[str, Sequence[str]], float]


def _best(score: Callable[[str, str], float]) -> Metric:
    return lambda answer, references: max(score(answer, reference) for reference in references)


def _words(text: str) -> list[str]:
    """As in SQuAD: without case, punctuation, articles and accents."""
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return _ARTICLES.sub(" ", plain.translate(_PUNCTUATION)).split()


@_best
def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and the recall of words, repeated ones counted."""
    ours, theirs = _words(answer), _words(reference)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def rouge(answer: str, references: Sequence[str]) -> float:
    """Geometric mean of ROUGE-1, ROUGE-2 and ROUGE-L (F, stemmed)."""
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = _scorer(kinds, stem=True)
    match = [scorer.score(reference, answer) for reference in references]
    product = 1.0
    for kind in kinds:
        product *= max(score[kind].fmeasure for score in match)
    return float(product ** (1 / 3))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Recall of the longest common subsequence of words."""
    scorer = _scorer(["rougeL"], stem=False)
    return float(max(scorer.score(each, answer)["rougeL"].recall for each in references))


@_best
def letter(answer: str, reference: str) -> float:
    """Whether the first single letter from A to D is the reference."""
    match = _LETTER.search(answer)
    return float(match is not None and match.group() == reference)


@_best
def percentage(answer: str, reference: str) -> float:
    """0.5 ** (difference / 10), with the first percentage in the answer, in points."""
    match, expected = _PERCENTAGE.search(answer), _PERCENTAGE.search(reference)
    if match is None or expected is None:
        return 0.0
    return float(0.5 ** (abs(float(match[1]) - float(expected[1])) / 10))


@_best
def order(answer: str, reference: str) -> float:
    """Share of pairs in the right order; one half by chance."""
    match, expected = (re.findall(r"\d+", text) for text in (answer, reference))
    if sorted(match) != sorted(expected):
        return 0.0
    pairs = set(combinations(expected, 2))
    return len(pairs & set(combinations(match, 2))) / len(pairs)


@_best
def cloze(answer: str, reference: str) -> float:
    """Share of masks with exactly their entity; both are dictionaries in text."""
    expected, match = _dictionary(reference), _dictionary(answer)
    return sum(match.get(mask) == entity for mask, entity in expected.items()) / len(expected)


@_best
def same(answer: str, reference: str) -> float:
    """Whether the first line is the reference."""
    first = answer.strip().split("\n")[0]
    return float(first.strip(" .").lower() == reference.strip(" .").lower())


@_best
def verdict(answer: str, reference: str) -> float:
    """Whether the answer is yes if and only if the reference is."""
    return float(_yes(answer) is (reference == "yes"))


@dataclass(frozen=True)
class Detection:
    """Precision, recall and F1 of the answer yes."""

    precision: float
    recall: float
    f1: float


def detection(answers: Sequence[str], scores: Sequence[float]) -> Detection:
    """Precision, recall and F1 of yes, from answers and whether they were right (score 1); 0 where
    nothing is yes."""
    kinds = Counter((_yes(text), score == 1) for text, score in zip(answers, scores, strict=True))
    right, wrong, missed = kinds[True, True], kinds[True, False], kinds[False, False]
    return Detection(
        precision=round(right / max(1, right + wrong), 6),
        recall=round(right / max(1, right + missed), 6),
        f1=round(2 * right / max(1, 2 * right + wrong + missed), 6),
    )


def _yes(answer: str) -> bool:
    return answer.strip().lower().startswith("yes")


METRICS: dict[str, Metric] = {
    "f1": f1, "rouge": rouge, "rouge_l": rouge_l, "letter": letter, "percentage": percentage,
    "order": order, "cloze": cloze, "same": same, "verdict": verdict,
}  # fmt: skip


def check(names: Sequence[str], what: str) -> None:
    """Raises InputError where ROUGE is among the names and its library is not installed."""
    if any(name.startswith("rouge") for name in names) and find_spec("rouge_score") is None:
        raise InputError(f"{what} is scored by ROUGE: pip install 'regraft[eval]'")


def _scorer(kinds: list[str], *, stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(kinds, use_stemmer=stem)


def _dictionary(text: str) -> JsonObject:
    match = _BRACES.search(text)
    try:
        value = parse_literal(match.group()) if match else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def parse_literal(text: str) -> Any:
    """The value of a Python literal, whose strings can all be written in UTF-8. Raises ValueError
    for everything else."""
    try:
        value = ast.literal_eval(text)
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deep") from None
    except (SyntaxError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return value
