"""RoPE: what a model's numbers forget about their own context, and the arithmetic around it.

Three things live here, all pure and none of them needing torch to import:

* `context`: `ContextSpec`, the rotary settings and context length of a checkpoint, read from a
  config.json in either spelling (transformers 5 `rope_parameters`, or `rope_theta` +
  `rope_scaling`) and written back in both. transformers 5 alone saves a config that 4.57, vLLM and
  llama.cpp of its time read as theta 10000; both spellings together are read alike by everyone.
* `frequencies`: frequencies of every family, and cos/sin tables exact at any position.
* `laws`: which theta for a longer context.

Families: linear ("Extending Context Window of LLMs via Positional Interpolation", 2306.15595),
dynamic NTK, YaRN (2309.00071), LongRoPE (2402.13753), Llama 3.1's piecewise rule, and Gemma's
proportional rotation.
"""

from regraft.rope.context import ContextSpec, parse_context
from regraft.rope.frequencies import inverse_frequencies, tables
from regraft.rope.laws import longest_wavelength, men_bound, ntk, scaling_law, theta_report

__all__ = [
    "ContextSpec",
    "inverse_frequencies",
    "longest_wavelength",
    "men_bound",
    "ntk",
    "parse_context",
    "scaling_law",
    "tables",
    "theta_report",
]
