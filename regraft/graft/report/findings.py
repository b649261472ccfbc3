"""An evaluation of a graft in sentences, for its card and the page."""

from __future__ import annotations

from regraft.evaluate.report.summary import summary
from regraft.evaluate.report.text import scores
from regraft.evaluate.result import EvaluationRecord
from regraft.graft.schema import in_recipe_words


def findings(result: EvaluationRecord) -> list[str]:
    """What the result means and what to do next, in the words of a graft recipe, then the scores at
    the greatest length."""
    return [*map(in_recipe_words, summary(result)), *scores(result)]
