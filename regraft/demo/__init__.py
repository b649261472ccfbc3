"""`regraft demo`: train, extract, apply and evaluate with models small enough for two cores.

A base learns retrieval in rows of 64 words. An extended copy learns it in 1024. A derivative of
the base learns a skill of its own, `shout`. Then `extract_lora(base, extended)` and
`apply_lora(adapter, derivative)` run on these folders, and every model is read back from disk and
examined: does the derivative have the long context, and does it still have its skill?

All models are trained by `regraft train` from a seed; none is stored. `job` runs the steps,
`recipes` has the training recipes, `exam` measures a model, `result` is what is measured, `page`
the table and the figure.
"""
