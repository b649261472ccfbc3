"""One command in a forked child: exit code, output, memory, and the paths that it wrote."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.copyfile": (1,), "shutil.move": (1,),
}  # fmt: skip
_DEVICES = ("/dev/null", "/dev/full", "/proc/self")


@dataclass(frozen=True)
class Outcome:
    """How one command ended. code: negative for a signal, None for a hang."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int
    outside: list[str]


def run(
    argv: Sequence[str],
    folder: Path,
    *,
    allowed: Sequence[str],
    limit: float,
    memory: int,
    note_modules: bool = False,
) -> Outcome:
    """Run `regraft` with these arguments in `folder`.

    allowed: prefixes of paths, relative to the folder, that may be written. limit: seconds until
    the command counts as hanging. memory: resident bytes at which it is killed. note_modules: write
    the names of the modules that it has imported to `log-modules`.
    """
    logs = {name: folder / f"log-{name}" for name in ("out", "err", "writes", "modules")}
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(argv, folder, logs, [str(folder / name) for name in allowed], note_modules)
    hang, peak = False, 0
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        elapsed = time.monotonic() - start
        peak = max(peak, _resident(child))
        if elapsed > limit or peak > memory:
            hang = elapsed > limit
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.002 if elapsed < 0.5 else 0.02)
    # end the processes that the command started (mergekit)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    text = {
        name: path.read_text(errors="replace") if path.exists() else ""
        for name, path in logs.items()
    }
    return Outcome(
        code=None if hang else os.waitstatus_to_exitcode(status),
        stdout=text["out"],
        stderr=text["err"],
        seconds=time.monotonic() - start,
        peak_bytes=max(peak, usage.ru_maxrss * 1024),
        outside=sorted(set(text["writes"].splitlines())),
    )


def prepare_imports() -> None:
    """Import what every command needs, and parse the command line's options once for all."""
    import matplotlib.figure
    import torch
    import transformers.models.llama.modeling_llama
    import typer.main

    from regraft.cli import app
    from regraft.train.estimate import machine

    assert transformers
    torch.set_num_threads(1)
    # Drawing a plot takes longer than all the rest, and reads nothing.
    matplotlib.figure.Figure.savefig = lambda _, path, **__: Path(path).write_bytes(b"drawn")
    machine._MEASURED_SECONDS = 0.0  # one product measures the rate of this CPU well enough
    command = typer.main.get_command(app)
    typer.main.get_command = lambda _: command


def import_modules(folder: Path) -> None:
    """Import what a command had imported when it ended, so that the next child need not.

    Some names of sys.modules cannot be imported, each library for reasons of its own; they are
    left out.
    """
    for name in (folder / "log-modules").read_text().splitlines():
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)


def freeze() -> None:
    """Exclude all present objects from garbage collection, so that children share their memory."""
    gc.collect()
    gc.freeze()


def _child(
    argv: Sequence[str],
    folder: Path,
    logs: dict[str, Path],
    allowed: list[str],
    note_modules: bool,
) -> None:
    """Does not return."""
    os.setpgid(0, 0)
    os.chdir(folder)
    for descriptor, path in ((0, Path("/dev/null")), (1, logs["out"]), (2, logs["err"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_RDWR | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), descriptor)
    os.environ.update(HOME=f"{folder}/home", TMPDIR=f"{folder}/tmp", HF_HUB_OFFLINE="1")
    os.environ.update(REGRAFT_CACHE=f"{folder}/home/cache", COLUMNS="200")
    if "torch" in sys.modules:
        # After a fork torch makes its thread pool anew where it is first used; two threads that do
        # so at once find none ("Invalid thread pool!", torch 2.13).
        sys.modules["torch"].set_num_threads(1)
    import tempfile

    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(logs["writes"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    permitted = tuple(allowed) + _DEVICES
    here = str(folder)

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not isinstance(flags, int) or not flags & _WRITING:
                return
            paths: tuple[object, ...] = (path,)
        elif event in _CHANGES:
            paths = tuple(arguments[i] for i in _CHANGES[event])
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                # the parent resolved, the name itself not: a link is removed, not what it names
                head, tail = os.path.split(os.path.abspath(os.fsdecode(path)))
                real = os.path.join(os.path.realpath(head), tail)
                # removals below a descriptor (shutil.rmtree) name no folder; `strays` and the
                # comparison of the inputs see them. mkdir of what exists changes nothing.
                if os.path.dirname(real) == here and event in ("os.remove", "os.rmdir", "open"):
                    continue
                if real == here and event == "os.mkdir":
                    continue
                if not real.startswith(permitted):
                    os.write(log, f"{event} {real}\n".encode(errors="replace"))

    sys.addaudithook(check)
    code = 99
    try:
        from regraft.cli import main

        sys.argv = ["regraft", *argv]
        main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1 if exit_.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        if note_modules:
            logs["modules"].write_text("\n".join(sys.modules))
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _resident(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def fresh_folder(folder: Path, inputs: Path, cache: Path) -> None:
    """An empty folder with hard links to the inputs, a home with a warm cache, and a tmp."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(inputs, folder / "in", copy_function=os.link)
    (folder / "tmp").mkdir()
    shutil.copytree(cache, folder / "home" / "cache", copy_function=shutil.copyfile)


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Relative path -> (mode, size, mtime in ns) of everything in a folder, links not followed."""
    result = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            stat = os.lstat(os.path.join(root, name))
            key = os.path.relpath(os.path.join(root, name), folder)
            result[key] = (stat.st_mode, 0 if name in folders else stat.st_size, stat.st_mtime_ns)
    return result
