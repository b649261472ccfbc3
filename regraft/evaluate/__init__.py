"""Prove what a graft carried over and what it cost: `regraft evaluate`.

`corpora` and `fitting` make prompts of a wanted length in a model's own tokens, `tasks` what is
asked in them, `scoring` the answers, `perplexity` and `drift` what needs no question. `transfer`
compares recipient, donor and graft item by item; `job` runs it all; `report` and `page` show it.
"""
