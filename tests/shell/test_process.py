"""The environment of a command."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from regraft.shell import process
from regraft.shell.process import set_environment


def test_threads_wait_asleep_and_segments_grow_unless_the_user_says_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_a_missing_kernel_of_bitsandbytes_is_not_reported(monkeypatch, caplog):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    for name in ("set_environment", "handle_signals", "_open_standard_streams"):
        monkeypatch.setattr(process, name, lambda: None)
    loggers = [logging.getLogger(f"bitsandbytes{name}") for name in (".backends.cpu.ops", "")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.NOTSET)

    def app(_):
        for logger in loggers:
            logger.warning("Failed to load")

    with pytest.raises(SystemExit):
        process.run_app(app)
    assert [line.name for line in caplog.records] == ["bitsandbytes"]
    logging.getLogger().manager._clear_cache()


def test_the_environment_is_set_before_torch_is_imported():
    code = (
        "import sys, types; from regraft.shell.process import run_app\n"
        "def app(_):\n"
        "    import os; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])\n"
        "run_app(app)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "PASSIVE\n"
