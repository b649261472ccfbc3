"""Input files: regular ones only, and JSON that ends in a value or in one sentence."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import regraft
from regraft.errors import CheckpointError, InputError
from regraft.input_files import parse_json, read_bytes, read_json_object, read_lines, read_text


def test_special_files_are_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    for name, words in (
        ("fifo", "is a FIFO"), ("socket", "cannot be read"), ("folder", "is a folder"),
        ("/dev/null", "is a device"), ("loop", "cannot be read"), ("nothing", "cannot be read"),
        ("a\0b", "cannot be read"),
    ):  # fmt: skip
        for read in (read_bytes, read_text, read_json_object, lambda path: list(read_lines(path))):
            with pytest.raises(InputError, match=words) as caught:
                read(name)
            assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"ab\xe9")
    for read in (read_text, lambda path: list(read_lines(path))):
        with pytest.raises(InputError, match="t is not UTF-8 text"):
            read(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deep"),
        ("[" * 101 + "1" + "]" * 101, "nested too deep"),
        ('{"a": [' * 400 + "1" + "]}" * 400, "nested too deep"),
        ("9" * 5000, "an integer of 5000 digits"),
        ("[" + "9" * 400 + "]", "an integer of 400 digits"),
        ("1e999", "too large"),
        ("-1e999", "too large"),
        (r'{"a": "\ud800"}', "half of a surrogate pair"),
        (r'{"\udc00b": 1}', "half of a surrogate pair"),
        (b"\xff\xfe", "can't decode"),
        ("{", "Expecting"),
        ("", "Expecting"),
        ("\ufeff{}", "Expecting|BOM"),
    ],
)
def test_json_that_cannot_be_used_is_one_sentence(text: str | bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        parse_json(text, "config.json", CheckpointError, remedy="mend it")
    assert str(caught.value).startswith("config.json is not valid JSON (")
    assert str(caught.value).endswith("); mend it.")
    assert "\n" not in str(caught.value)


def test_json_may_nest_a_hundred_levels_and_hold_brackets_in_text() -> None:
    deep = "[" * 100 + "1" + "]" * 100
    assert parse_json(deep, "x") == json.loads(deep)
    text = json.dumps({"chat_template": "{[" * 1000})
    assert parse_json(text, "x") == json.loads(text)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(_VALUES)
def test_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    for escaped in (True, False):  # a whole pair of surrogates is a character
        text = json.dumps(value, ensure_ascii=escaped)
        assert parse_json(text, "x") == json.loads(text)


def test_no_other_file_of_the_package_reads_a_users_json() -> None:
    """Files that read back what regraft itself has written into its cache or staging folder."""
    root = Path(regraft.__file__).parent
    own = {
        "cache.py", "data/tokens.py", "data/build/document.py", "data/build/executors/runner.py",
        "checkpoint/write/journal.py", "checkpoint/write/manifest.py",
        "checkpoint/hf/roles.py", "evaluate/shared_output.py",
        "line_file.py", "train/job.py", "train/output/log.py", "train/state.py",
    }  # fmt: skip
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"json\.loads?\(|json\.loads\b|\bsafe_open\(", path.read_text("utf-8"))
    }
    spooled = {"adapters/extract/factorize.py"}  # factors of a run that is resumed
    replies = {"endpoint.py"}  # of a server, whose damage is an EndpointError
    states = {"evaluate/prompts/pieces.py"}  # of a tokenizer in memory
    assert users <= own | spooled | replies | states
