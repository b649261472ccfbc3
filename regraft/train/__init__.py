"""`regraft train`: longer context by full fine-tune or LoRA, one loop, one YAML recipe.

`recipe` and `blocks` are the YAML; `positions`, `rotary`, `attention`, `loss` and `memory` the
arithmetic of a step; `loop` runs the stages; `state` resumes a killed run exactly;
`export` writes the model or the adapter.
"""
