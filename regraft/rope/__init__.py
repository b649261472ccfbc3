"""RoPE: the context of a model, which its weights alone do not say, and the arithmetic around it.

Pure functions and values; importing them does not import torch.

* `context`: `ContextSpec`, the rotary settings and context length of a checkpoint, read from a
  config.json in either spelling (transformers 5 `rope_parameters`, or `rope_theta` +
  `rope_scaling`) and written back in both. transformers 5 alone saves a config that 4.57, vLLM and
  llama.cpp of its time read as theta 10000; both spellings together are read alike by everyone.
  `spelling` has the two spellings.
* `extend`: a context with another theta, length or family; `context_option` reads it from
  `--context`.
* `frequencies`: frequencies of every family, and cos/sin tables exact at any position.
* `laws`: which theta for a longer context. `longrope`: which factors.

Families: linear ("Extending Context Window of LLMs via Positional Interpolation", 2306.15595),
dynamic NTK, YaRN (2309.00071), LongRoPE (2402.13753), Llama 3.1's piecewise rule, and Gemma's
proportional rotation.
"""

from regraft.rope.context import ContextSpec
from regraft.rope.context_option import parse_context
from regraft.rope.extend import extend_context
from regraft.rope.frequencies import inverse_frequencies, tables
from regraft.rope.laws import (
    ThetaReport,
    longest_wavelength,
    men_bound,
    ntk,
    scaling_law,
    theta_report,
)

__all__ = [
    "ContextSpec",
    "ThetaReport",
    "extend_context",
    "inverse_frequencies",
    "longest_wavelength",
    "men_bound",
    "ntk",
    "parse_context",
    "scaling_law",
    "tables",
    "theta_report",
]
