"""A context with another theta, length or family."""

from __future__ import annotations

from rope_configs import LLAMA3, LLAMA_31

from regraft.rope import ContextSpec, extend_context


def test_extending_keeps_what_is_not_named() -> None:
    spec = ContextSpec.from_config(LLAMA_31)
    assert extend_context(spec) == spec
    longer = extend_context(spec, theta=1e7, length=262144)
    assert longer.rope_parameters == {**LLAMA3, "rope_theta": 1e7}
    back = extend_context(longer, rope_type="default")
    assert back.rope_parameters == {"rope_type": "default", "rope_theta": 1e7}
    assert back.original_max_position_embeddings is None
    assert extend_context(spec, rope_type="llama3", length=262144).rope_parameters["factor"] == 32
