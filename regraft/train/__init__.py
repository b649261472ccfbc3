"""`regraft train`: longer context by full fine-tune or LoRA, one loop, one YAML recipe.

`recipe/` reads the YAML, `setup` checks it against model and text, `job` and `loop` run the stages,
`step/` has the arithmetic of one optimizer step, `state` resumes a killed run exactly, `estimate/`
predicts memory and time, `output/` writes the model or adapter, the logs and the card.
"""
