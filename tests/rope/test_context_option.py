"""The text of --context."""

from __future__ import annotations

import pytest
from rope_configs import plain

from regraft.errors import InputError
from regraft.rope import parse_context


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("theta=283461213,length=256k", "theta 283461213, 256k"),
        (" theta = 8e6 ", "theta 8000000, 8k"),
        ("family=yarn,length=64k", "yarn x8 (theta 500000, from 8k), 64k"),
        ("rope_type=llama3,length=64k,factor=16", "llama3 x16 (theta 500000, from 8k), 64k"),
        ("rope_type=linear,factor=2", "linear x2 (theta 500000), 8k"),
        ("family=dynamic,factor=4", "dynamic x4 (theta 500000), 8k"),
        ("family=yarn,original=4k,length=16k", "yarn x4 (theta 500000, from 4k), 16k"),
    ],
)
def test_context_text_extends_a_spec(text: str, expected: str) -> None:
    assert parse_context(text, plain()).describe() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tehta=1e6", "did you mean theta"),
        ("lenght=8k", "did you mean length"),
        ("zzz=1", "choose from theta"),
        ("theta", "not key=value"),
        ("theta=", "not key=value"),
        ("theta=1,theta=2", "given twice"),
        ("family=yarn,rope_type=yarn", "given twice"),
        ("theta=big", "not a number"),
        ("theta=inf", "finite number"),
        ("theta=-5", "above 1"),
        ("length=8q", "token count"),
        ("factor=4", "takes no factor"),
        ("family=yarm,factor=4", "did you mean yarn"),
        ("family=yarn", "needs a factor"),
        ("family=yarn,factor=0.5", "at least 1"),
        ("family=yarn,length=4k", "at least 1"),
        ("family=longrope,factor=4", "per dimension"),
        ("family=dynamic,length=64k", "leave the length out"),
        ("", "not key=value"),
    ],
)
def test_bad_context_text_is_explained(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_context(text, plain())
    assert str(caught.value).endswith(".")
