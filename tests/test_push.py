"""Upload to the Hub: one commit, private, resumed, nothing but what regraft wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import refused, run
from models import earlier_output
from scripts import REGRAFT, Done, Scripts
from upload_hub import UploadHub

from regraft.errors import InputError
from regraft.push import push_output

TOKEN = "hf_" + "a" * 34


@pytest.fixture
def output(tmp_path: Path) -> Path:
    files = {"config_json": "{}", "README_md": "# card", "a_safetensors": "weights of a"}
    return earlier_output(tmp_path / "out", **files, b_safetensors="weights of b")


Push = Callable[..., Done]


@pytest.fixture
def push(scripts: Scripts) -> Push:
    """Run `regraft push` as a user of a Hub whose cache is in a folder."""

    def run_push(hub: UploadHub, home: Path, *argv: str | Path, **env: str) -> Done:
        return scripts.run(
            REGRAFT, "push", *argv, "--json", env=hub.env(home, HF_TOKEN=TOKEN, **env)
        )

    return run_push


def test_everything_goes_into_one_private_commit(push: Push, output: Path, tmp_path: Path) -> None:
    with UploadHub() as hub:
        done = push(hub, tmp_path / "home", output, "org/new")
    assert done.returncode == 0, done.stderr
    assert hub.existing == {"org/new": True}
    assert hub.commits["org/new"] == {
        name: (output / name).read_bytes()
        for name in ("config.json", "README.md", "a.safetensors", "b.safetensors")
    }
    record = json.loads(done.stdout)
    assert (record["private"], record["commit"][:6]) == (True, "c0ffee")
    assert hub.tokens == {TOKEN}
    assert TOKEN not in done.stdout + done.stderr
    for path in (tmp_path / "home").rglob("*"):
        assert not path.is_file() or TOKEN not in path.read_text(errors="ignore")


def test_an_interrupted_upload_is_continued(push: Push, output: Path, tmp_path: Path) -> None:
    with UploadHub(drop_after=1) as hub:
        failed = push(hub, tmp_path / "home", output, "org/new")
        assert failed.returncode == 1
        assert "run the same command again, it continues" in failed.stderr
        assert failed.stderr.count("\n") == 1
        assert hub.commits == {}
        first = dict(hub.objects)
        hub.drop_after = None
        assert push(hub, tmp_path / "home", output, "org/new").returncode == 0
    assert len(first) == 1
    assert set(hub.objects) > set(first)
    assert set(hub.commits["org/new"]) > {"a.safetensors", "b.safetensors"}


@pytest.mark.parametrize(
    ("hub", "argv", "message"),
    [
        (UploadHub({"org/open": False}), ["org/open"], "everyone can read it; give --public"),
        (UploadHub(forbidden=("org/theirs",)), ["org/theirs"], "does not let you write"),
    ],
)
def test_what_the_hub_does_not_allow_is_one_sentence(
    hub: UploadHub, argv: list[str], message: str, push: Push, output: Path, tmp_path: Path
) -> None:
    with hub:
        done = push(hub, tmp_path / "home", output, *argv)
    assert (done.returncode, hub.commits) == (2, {})
    assert message in done.stderr


def test_an_open_repository_is_added_to_with_public(
    push: Push, output: Path, tmp_path: Path
) -> None:
    with UploadHub({"org/open": False}) as hub:
        done = push(hub, tmp_path / "home", output, "org/open", "--public")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["private"] is False
    assert hub.commits["org/open"]


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    push: Push, output: Path, tmp_path: Path
) -> None:
    with UploadHub() as hub:
        pass  # its server is stopped from here on
    offline = push(hub, tmp_path / "home", output, "org/new", HF_HUB_OFFLINE="1")
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (2, True)
    gone = push(hub, tmp_path / "home", output, "org/new")
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert "was interrupted" in gone.stderr


def test_a_dry_run_lists_what_would_be_sent(output: Path) -> None:
    record = push_output(output, "org/new", dry_run=True)
    assert [file.name for file in record.files] == [
        "README.md", "a.safetensors", "b.safetensors", "config.json"
    ]  # fmt: skip
    assert record.plan == {"files": 4, "send_bytes": 32}
    printed = run("push", output, "org/new", "--dry-run")
    assert printed.exit_code == 0
    assert re.search(r"files +4\b", printed.stdout)
    assert re.search(r"send +32 B", printed.stdout)


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_a_file_that_is_not_ours_is_not_published(name: str, output: Path) -> None:
    (output / name).write_text("changed")
    with pytest.raises(InputError, match=f"{name}.*so that nothing else is published"):
        push_output(output, "org/new", dry_run=True)


def test_a_token_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = earlier_output(tmp_path / "out", recipe_yaml=f"model: x\ntoken: {TOKEN}\n")
    with pytest.raises(InputError, match=r"recipe\.yaml holds an access token") as caught:
        push_output(held, "org/new", dry_run=True)
    assert TOKEN not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "of-another-form")
    own = earlier_output(tmp_path / "own", train_json='{"env": "of-another-form"}')
    with pytest.raises(InputError, match="holds an access token"):
        push_output(own, "org/new", dry_run=True)


def test_what_cannot_be_pushed_is_one_sentence(tmp_path: Path) -> None:
    assert "give org/name" in refused(run("push", tmp_path, "name"))
    assert "does not exist" in refused(run("push", tmp_path / "nothing", "org/name"))
    assert "is not an output of regraft" in refused(run("push", tmp_path, "org/name"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF of others")
    assert "is not a file that regraft wrote" in refused(run("push", tmp_path / "x.gguf", "o/n"))
    (tmp_path / "y.gguf").write_bytes(b"GGUF regraft.record")
    record = push_output(tmp_path / "y.gguf", "org/name", dry_run=True)
    assert [file.name for file in record.files] == ["y.gguf"]
