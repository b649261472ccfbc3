"""`regraft evaluate`: measure how well models use their context, and what a graft gained and lost.

`prompts/` makes text of a given length in a model's own tokens, `tasks/` and `local/` make items
from it, `answers/` gets and scores a model's answers and measures perplexity and drift, `report/`
compares the models item by item and shows the result. `job` calls them in order.
"""
