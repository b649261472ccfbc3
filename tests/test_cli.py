"""The command line: what each command prints, and refusals in one sentence with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import models
import pytest
from commands import refused, run
from peft_folders import adapter


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, Path, Path]:
    return models.family(tmp_path_factory.mktemp("family"))


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
        (["--layout", "huge"], "--layout 'huge' is not one of portable, compact, exact."),
        (["--device", "cuda:77"], "sees no such GPU"),
        (["--device", "meta"], "--device 'meta' is not"),
        (["--device", "gpu"], "--device 'gpu' is not"),
        (["--threads", "0"], "--threads 0 is too few"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_2(argv, said, family, tmp_path):
    assert said in refused(run("extract-lora", *family[:2], "-o", tmp_path / "a", *argv))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["--scale", "x"], ["--no-such-option"]])
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
