"""Jobs of the process that forks what tests run: one that hangs is killed and says where it was."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from forked import Children
from warm import reserved_port


def test_a_job_that_hangs_ends_with_its_stacks_and_the_next_one_works(
    children: Children, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "unread")  # opening it to write waits for a reader
    with pytest.raises(AssertionError, match=r"did not end within 0\.3 s") as error:
        children.run("--version", stdout=tmp_path / "unread", limit=0.3)
    assert "forked.py" in str(error.value)
    assert children.run("--version")["code"] == 0


def test_a_reserved_port_is_given_to_nobody_else_and_its_store_binds_it() -> None:
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as store:
            store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            store.bind(("0.0.0.0", port))
            store.listen()
