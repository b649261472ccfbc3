"""The command line: exit codes, one sentence on stderr, one JSON object on stdout."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest
from peft_folders import adapter
from typer.testing import CliRunner

from regraft import cli, shell
from regraft.errors import OutputError

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


def run(*argv: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(part) for part in argv])


def refused(result: Any, code: int = 2) -> str:
    """What was said, after the checks that hold for every refusal."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert re.fullmatch(r"regraft: [^\n]+\n", result.stderr), result.stderr
    return str(result.stderr)


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, regraft.cli; print({'torch', 'transformers', 'peft'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("module", ["regraft", "regraft.cli"])
def test_the_command_line_runs_as_a_module(module):
    line = [sys.executable, "-m", module, "theta", "8k", "1M", "-q"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "3580165449\n"


def test_help_names_every_command_and_keeps_its_brackets(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("--help").stdout
    for name in ("extract-lora", "apply", "inspect", "theta", "demo"):
        assert name in text
        page = run(name, "--help")
        assert page.exit_code == 0
        assert "Example: regraft" in page.stdout
        for option in ("--json", "--quiet", "--debug"):
            assert option in page.stdout
    assert "org/name[@revision]" in run("extract-lora", "--help").stdout
    assert "[default: 64]" in run("extract-lora", "--help").stdout
    assert "[default: adapter, if CHECKPOINT has its base's]" in run("apply", "--help").stdout


def test_the_version_is_printed():
    from regraft import __version__

    assert run("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("argv", "printed"),
    [
        (("8k", "262144", "--base", "500000"), "283461213\n"),
        (("8k", "1M"), "3580165449\n"),
    ],
)
def test_theta_prints_the_published_values(argv, printed):
    result = run("theta", *argv)
    assert result.stdout == printed
    assert "bound" in result.stderr
    parsed = json.loads(run("theta", *argv, "--json").stdout)
    assert parsed["theta"] == int(printed)


def test_theta_refuses_an_unknown_law():
    assert "--law 'magic' is not one of" in refused(run("theta", "8k", "1M", "--law", "magic"))
    assert "is not a token count" in refused(run("theta", "8q", "1M"))


def test_extract_and_apply_end_to_end(family, tmp_path):
    base, long, derivative = family
    done = run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4)
    assert done.exit_code == 0, done.output
    assert "theta 160000, 2k" in done.stdout
    done = run("apply", tmp_path / "a", derivative, "-o", tmp_path / "out", "--verify")
    assert done.exit_code == 0, done.output
    assert "14 tensors, scale 1.0" in done.stdout
    assert "Traceback" not in done.output


def test_json_is_one_object_on_stdout_whatever_libraries_say(family, tmp_path, children):
    base, long, derivative = family
    done = children.run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4, "--json")
    assert done["code"] == 0, done["err"]
    assert json.loads(done["out"]) == json.loads((tmp_path / "a/regraft.json").read_text())
    assert done["out"].count("\n") == 1
    assert done["err"] == ""
    (tmp_path / "a/regraft.json").unlink()
    (tmp_path / "a/regraft-lineage.safetensors").unlink()
    done = children.run("apply", tmp_path / "a", derivative, "-o", tmp_path / "out", "--json")
    assert done["code"] == 0, done["err"]
    assert json.loads(done["out"])["kind"] == "graft"
    assert re.fullmatch(r"regraft: warning: [^\n]* carries no context[^\n]*\n", done["err"])


def test_json_says_no_infinity(monkeypatch):
    from regraft import theta

    monkeypatch.setattr(
        theta, "theta_report", lambda *_: {"laws": {"scaling": {"theta": math.inf}}, "warnings": []}
    )
    assert "NaN or infinity" in refused(run("theta", "8k", "1M", "--json"), 1)


def test_a_dry_run_shows_sizes_for_people_and_writes_nothing(family, tmp_path):
    base, long, _ = family
    shown = run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4, "--dry-run")
    assert shown.exit_code == 0
    assert re.search(r"write +14\.8 kB", shown.stdout)
    assert "_bytes" not in shown.stdout
    parsed = json.loads(
        run("extract-lora", base, long, "-o", tmp_path / "a", "--rank", 4, "--dry-run", "--json")
        .stdout
    )  # fmt: skip
    assert parsed["plan"]["write_bytes"] == 14848
    assert list(tmp_path.iterdir()) == []


def test_brackets_in_names_are_shown_as_they_are(family, tmp_path):
    done = run(
        "extract-lora", *family[:2], "-o", tmp_path / "[red]x[1]", "--rank", 2, "--no-verify"
    )
    assert "[red]x[1]" in done.stdout.replace("\n", "")
    assert (tmp_path / "[red]x[1]" / "regraft.json").is_file()


def test_quiet_says_nothing_on_stderr(family, tmp_path):
    done = run("extract-lora", *family[:2], "-o", tmp_path / "a", "--rank", 2, "-q")
    assert done.exit_code == 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rank", "0"], "--rank 0 is too small"),
        (["--rank", "x"], "--rank 'x' is neither"),
        (["--rank", "4", "--energy", "0.9"], "--rank and --energy both"),
        (["--energy", "7"], "is not a share"),
        (["--budget", "1kB"], "--budget 1000 is less"),
        (["--modules", "("], "is not a regular expression"),
        (["--modules", "nope"], "names no matrix"),
        (["--dtype", "int4"], "--dtype 'int4' is not"),
        (["--device", "cuda:77"], "sees no such GPU"),
        (["--device", "meta"], "--device 'meta' is not"),
        (["--device", "gpu"], "--device 'gpu' is not"),
        (["--threads", "0"], "--threads 0 is too few"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_2(argv, said, family, tmp_path):
    assert said in refused(run("extract-lora", *family[:2], "-o", tmp_path / "a", *argv))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["--layout", "huge"], ["--scale", "x"], ["--no-such-option"]])
def test_what_the_parser_refuses_exits_2_too(argv, family, tmp_path):
    command = "apply" if "--scale" in argv else "extract-lora"
    result = run(command, *family[:2], "-o", tmp_path / "a", *argv)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def index(folder: Path, **changes: str) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: cut(f / "model-00002-of-00002.safetensors"), "is truncated"),
        (lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(b""), "is empty"),
        (lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(b"x" * 99), "not a valid"),
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "lacks model-00002-of-00002"),
        (lambda f: index(f, **{"lm_head.weight": "../x.safetensors"}), "not a file inside"),
        (lambda f: index(f, **{"lm_head.weight": "/etc/passwd"}), "not a file inside"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "nope"}'), "bad: "),
        (
            lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*.safetensors")]
            and (f / "model.safetensors.index.json").unlink(),
            "pickled",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["base", "extended", "target"])
def test_broken_models_are_one_sentence_and_exit_2(place, change, said, family, tmp_path):
    bad = models.save(tmp_path / "bad", models.LLAMA, models.load(family[0]), shards=2)
    change(bad)
    out = ("-o", tmp_path / "out")
    if place == "target":
        result = run("apply", adapter(tmp_path / "a"), bad, *out, "-q")
    else:
        pair = (bad, family[1]) if place == "base" else (family[0], bad)
        result = run("extract-lora", *pair, *out)
    assert said in refused(result)
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_is_one_sentence(family, tmp_path):
    out = ("-o", tmp_path / "out")
    assert "is a model" in refused(run("apply", family[0], family[2], *out))
    assert "does not exist" in refused(run("apply", tmp_path / "none", family[2], *out))
    (tmp_path / "empty").mkdir()
    assert "is not an adapter" in refused(run("apply", tmp_path / "empty", family[2], *out))


def test_a_filled_or_impossible_output_is_refused(family, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("keep")
    (tmp_path / "file").write_text("keep")
    line = ("extract-lora", *family[:2], "--rank", 2, "-o")
    assert "is not empty" in refused(run(*line, tmp_path / "full"))
    assert "is a file" in refused(run(*line, tmp_path / "file"))
    assert "overlaps the input" in refused(run(*line, family[0] / "out"))
    assert "file is a file" in refused(run(*line, tmp_path / "file" / "below"))
    assert (tmp_path / "full/mine").read_text() == (tmp_path / "file").read_text() == "keep"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_empty_output_name_is_refused_by_every_command(dry, family, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {family[0]}}}]\n")
    training = Path(__file__).parents[1] / "examples/extend-toy.yaml"
    for line in (
        ["extract-lora", *family[:2]], ["apply", adapter(tmp_path / "a"), family[2]],
        ["merge", recipe], ["train", training], ["evaluate", family[0]],
    ):  # fmt: skip
        assert "(-o) is empty" in refused(run(*line, "-o", "", *dry)), line[0]
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
    assert "(-o) is empty" in refused(run("demo", "-o", ""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused(family, tmp_path):
    (tmp_path / "ro").mkdir(mode=0o500)
    said = refused(run("extract-lora", *family[:2], "-o", tmp_path / "ro/a", "--rank", 2), 1)
    assert "permission is denied" in said


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small_is_one_sentence_and_exit_1(family, small_disk, tmp_path):
    said = refused(
        run("extract-lora", *family[:2], "-o", small_disk / "a", "--rank", 64, "--no-verify"), 1
    )
    assert "make room" in said
    assert not (small_disk / "a").exists()
    assert run("extract-lora", *family[:2], "-o", tmp_path / "a", "--rank", 2).exit_code == 0
    said = refused(run("apply", tmp_path / "a", family[2], "-o", small_disk / "b"), 1)
    assert "make room" in said


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated (SIGTERM)"),
        (signal.SIGHUP, "the terminal was closed (SIGHUP)"),
    ],
)
@pytest.mark.parametrize("command", ["extract-lora", "apply"])
def test_a_signal_is_one_line_its_code_and_resumable(
    command, number, message, family, tmp_path, children
):
    base, long, derivative = family
    if command == "apply":
        assert children.run("extract-lora", base, long, "-o", tmp_path / "a", "-q")["code"] == 0
        line = ["apply", tmp_path / "a", derivative, "-q", "-o"]
    else:
        line = ["extract-lora", base, long, "--no-verify", "-q", "-o"]
    whole = children.run(*line, tmp_path / "whole")
    out = tmp_path / "out"
    stopped = children.run(*line, out, die=whole["calls"] // 2, with_signal=number)
    assert stopped["code"] == 128 + number
    assert stopped["err"] == f"regraft: {message}; --resume continues where it can\n"
    assert stopped["out"] == ""
    assert not out.exists()
    assert (tmp_path / ".out.regraft-staging").is_dir()
    assert children.run(*line, out, "--resume")["code"] == 0
    assert models.contents(out) == models.contents(tmp_path / "whole")


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, sys; from regraft import shell\n"
        "class App:\n"
        "    def __call__(self, _):\n"
        "        try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "        finally: os.kill(os.getpid(), signal.SIGTERM); print('cleanup that hangs')\n"
        "shell.run_app(App())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "regraft: terminated (SIGTERM)\n"


def test_resuming_is_offered_by_commands_that_have_it(monkeypatch):
    from regraft import theta
    from regraft.adapters.extract import extract

    def stop(*_: object, **__: object) -> None:
        raise shell.Interrupted(signal.SIGINT)

    monkeypatch.setattr(theta, "theta_report", stop)
    monkeypatch.setattr(extract, "extract_lora", stop)
    assert run("extract-lora", "a", "b", "-o", "c").stderr == (
        "regraft: interrupted; --resume continues where it can\n"
    )
    assert run("theta", "8k", "1M").stderr == "regraft: interrupted\n"


@pytest.mark.parametrize("more", ["time.sleep(60); print('it went on')", "pass  # it ends first"])
@pytest.mark.parametrize("drops", ["__del__", "a weak reference's callback"])
def test_a_signal_that_comes_where_python_drops_errors_is_not_lost(drops, more):
    code = (
        "import os, signal, time, weakref; from regraft import shell\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGTERM)\n"
        "class Object: pass\n"
        "class Freed:\n"
        "    def __del__(self): stop()\n"
        "def app(_):\n"
        f"    freed = Freed() if {drops == '__del__'} else Object()\n"
        "    reference = weakref.ref(freed, stop) if type(freed) is Object else None\n"
        f"    del freed; {more}\n"
        "shell.run_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "regraft: terminated (SIGTERM)\n"


def test_an_error_that_python_ignores_is_one_line():
    code = (
        "from regraft import progress, shell\n"
        "class Freed:\n"
        "    def __del__(self): raise OSError('line one\\nline two')\n"
        "def app(_):\n"
        "    progress.configure(quiet=False); freed = Freed(); del freed\n"
        "shell.run_app(app)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "warning: an error was ignored (OSError: line one line two)\n"


def test_ignored_signals_stay_ignored():
    code = (
        "import os, signal; from regraft import shell\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "shell.run_app(lambda _: os.kill(os.getpid(), signal.SIGHUP))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_libraries_print_is_no_part_of_a_result(as_json):
    """Also what they print in C or Rust, past Python's sys.stdout."""
    code = (
        "import os; from regraft import shell\n"
        "def work():\n"
        "    print('from Python')\n"
        "    os.write(1, b'from Rust\\n')\n"
        "    return {'a': 1}\n"
        f"shell.run(work, lambda result: ['done'], shell.Options(as_json={as_json}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ('{"a": 1}\n' if as_json else "done\n")
    assert sorted(done.stderr.splitlines()) == ["from Python", "from Rust"]


@pytest.mark.parametrize("stdout", ["/dev/full", ""])
@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_result_that_cannot_be_printed_is_one_line(stdout, option, family, tmp_path, children):
    if stdout and not Path(stdout).exists():
        pytest.skip("no full device here")
    line = ["extract-lora", *family[:2], "--rank", 2, "--no-verify", option, "-o"]
    done = children.run(*line, tmp_path / "a", stdout=stdout)
    assert done["code"] == 1
    said = (
        r"regraft: The result cannot be written to standard output \([^\n]+\); [^\n]+complete\.\n"
    )
    assert re.fullmatch(said, done["err"])
    assert (tmp_path / "a" / "regraft.json").is_file()


@pytest.mark.parametrize("stdout", ["/dev/full", ""])
@pytest.mark.parametrize(
    "argv", [["--version"], ["--help"], ["merge", "--schema"], ["theta", "--help"]]
)
def test_help_that_cannot_be_printed_is_one_line(argv, stdout, children):
    if stdout and not Path(stdout).exists():
        pytest.skip("no full device here")
    done = children.run(*argv, stdout=stdout)
    assert done["code"] in ((1,) if stdout else (0, 1))  # Python prints to a closed one in silence
    assert re.fullmatch(r"(regraft: [^\n]+\n)?", done["err"])
    assert done["err"] or not stdout


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_reader_that_has_gone_is_one_line(option):
    line = [sys.executable, "-m", "regraft", "theta", "8k", "1M", option]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert re.fullmatch(r"regraft: [^\n]*Broken pipe[^\n]*\n", done.stderr)


def test_full_or_closed_stderr_does_not_stop_the_work():
    line = [sys.executable, "-m", "regraft", "theta", "8k", "1M"]
    for redirection in ("2>&-", "2>/dev/full"):
        shell_line = " ".join((*line, redirection))
        done = subprocess.run(shell_line, shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "3580165449\n"), redirection


def test_threads_wait_asleep_and_segments_grow_unless_the_user_says_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    shell.set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    shell.set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_the_environment_is_set_before_torch_is_imported():
    code = (
        "import sys, types; from regraft import shell\n"
        "def app(_):\n"
        "    import os; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])\n"
        "shell.run_app(app)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "PASSIVE\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OutputError("Cannot write x: the disk is full."), 1, "Cannot write x"),
        (MemoryError("3 GB"), 1, "not enough memory"),
        (OSError(28, "No space left on device", "/x/y"), 1, "Cannot access /x/y: the disk is full"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "not enough GPU memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_failure_is_one_line_and_its_code(error, code, said, monkeypatch):
    from regraft import theta

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(theta, "theta_report", fail)
    assert said in refused(run("theta", "8k", "1M"), code)
    if code == 1:
        assert type(run("theta", "8k", "1M", "--debug").exception) is type(error)


def test_a_bug_is_one_line_and_a_traceback_for_who_asks(monkeypatch):
    from regraft import theta

    monkeypatch.setattr(theta, "theta_report", lambda *_: 1 / 0)
    result = run("theta", "8k", "1M")
    assert result.exit_code == 1
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert isinstance(run("theta", "8k", "1M", "--debug").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("recover: {stepps: 3}", "line 3: 'stepps' is not a key here (did you mean stages?)"),
        ("recover: absent.yaml", "absent.yaml cannot be read"),
        ("evaluate: {zork: 1}", "line 3"),
    ],
)
def test_blocks_for_later_are_checked_by_merge(block, words, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\n{block}\n")
    result = run("merge", recipe, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
