"""A model on disk or on the Hub.

`read` opens it and reads its tensors, `write` makes an output folder and fills it with tensors, and
`hf` gives what transformers, tokenizers and PEFT build from it.
"""
