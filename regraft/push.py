"""An output folder or file -> a repository of the Hub, in one commit.

Only files that regraft wrote are sent: a folder with a file that is not in its list, or that has
changed since, is refused. So is a text that contains a token. Large files go first, one by one, to
the Hub's storage, which identifies them by their hash: the same command continues an interrupted
upload, and the commit is made when all files are there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft import progress
from regraft.checkpoint.write.manifest import MANIFEST, foreign_files, read_manifest
from regraft.checkpoint.write.target import is_marked_file
from regraft.errors import InputError, RegraftError, reading
from regraft.records import PushedFile, PushRecord, versions
from regraft.units import format_bytes

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_TEXT = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".html", ".jinja", ".csv")


def push_output(
    out: str | Path, repository: str, *, public: bool = False, dry_run: bool = False
) -> PushRecord:
    """Upload `out`, a folder or a GGUF file that regraft wrote, to the Hub model `org/name`.

    The repository is created private unless `public`; an existing public one needs `public`, too.
    The token is that of `hf auth login` or HF_TOKEN, and is not stored. dry_run: list the files
    that would be sent, without contacting the Hub.

    Raises InputError for an output that is not as regraft wrote it, a file that contains a token,
    an invalid name or a missing permission; RegraftError where the Hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"'{repository}' is not the name of a repository; give org/name.")
    files = _files(Path(out).expanduser())
    _refuse_tokens(files)
    record = PushRecord(
        repository=repository,
        url=f"{_endpoint()}/{repository}",
        private=not public,
        files=[PushedFile(name=name, bytes=path.stat().st_size) for name, path in files.items()],
        versions=versions(),
    )
    if dry_run:
        total = sum(file.bytes for file in record.files)
        return replace(record, plan={"files": len(record.files), "send_bytes": total})
    with _hub_errors(repository):
        return _upload(record, files)


def _files(out: Path) -> dict[str, Path]:
    """Name in the repository -> file, of everything that regraft wrote."""
    with reading(out):
        if out.is_file():
            if not is_marked_file(out):
                raise InputError(f"{out} is not a file that regraft wrote; give an output of it.")
            return {out.name: out}
        if not out.is_dir():
            raise InputError(f"{out} does not exist; give a folder or file that regraft wrote.")
        listed = read_manifest(out)
        if listed is None:
            raise InputError(
                f"{out} is not an output of regraft (it has no {MANIFEST}); give one, or upload it "
                "with `hf upload`."
            )
        if foreign := foreign_files(out):
            raise InputError(
                f"{out} holds files that regraft did not write or that were changed since "
                f"({foreign[0]}); move them away, so that nothing else is published."
            )
        missing = [name for name in listed if not (out / name).is_file()]
        if missing:
            raise InputError(f"{out} lacks {missing[0]}, which regraft wrote; make it again.")
    return {name: out / name for name in sorted(listed)}


def _refuse_tokens(files: dict[str, Path]) -> None:
    """Raise InputError where a text contains the user's token or anything that looks like one."""
    from huggingface_hub import get_token

    own = (get_token() or "").encode()
    for name, path in files.items():
        if path.suffix not in _TEXT:
            continue
        with reading(path):
            text = path.read_bytes()
        if _TOKEN.search(text) or (own and own in text):
            raise InputError(f"{path} holds an access token of the Hub; remove it from {name}.")


def _upload(record: PushRecord, files: dict[str, Path]) -> PushRecord:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()  # regraft displays its own
    logging.set_verbosity_error()  # errors are raised
    api = HfApi(library_name="regraft")
    name = record.repository
    api.create_repo(name, private=record.private, repo_type="model", exist_ok=True)
    private = bool(api.repo_info(name).private)
    if record.private and not private:
        raise InputError(
            f"{name} exists and everyone can read it; give --public to add to it, or another name."
        )
    operations: list[Any] = []
    total = sum(file.bytes for file in record.files)
    with progress.bar("Uploading", total, unit="bytes") as bar:
        for file in record.files:
            operation = CommitOperationAdd(file.name, str(files[file.name]))
            # the Hub skips files that it has: an interrupted upload continues here
            api.preupload_lfs_files(name, [operation])
            operations.append(operation)
            bar.advance(file.bytes, file.name)
    commit = api.create_commit(name, operations, commit_message="Upload with regraft")
    return replace(record, private=private, commit=commit.oid)


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Convert errors of the Hub's library to errors of one sentence, without the token."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    remedy = "run the same command again, it continues"
    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError(
            f"Uploading to {repository} needs an access token; run `hf auth login` or set HF_TOKEN."
        ) from None
    except OfflineModeIsEnabled:
        raise InputError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it and run again."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise InputError(
                f"The Hub does not let you write to {repository} (HTTP {status}); check the name "
                "and that the token of `hf auth login` may write there."
            ) from None
        raise RegraftError(
            f"The Hub refuses the upload to {repository} (HTTP {status}); {remedy}."
        ) from None
    except (OSError, RuntimeError, HTTPError) as error:
        raise RegraftError(
            f"The upload to {repository} was interrupted ({type(error).__name__}); {remedy}."
        ) from None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def summary(record: PushRecord) -> list[tuple[str, str]]:
    """The lines printed after an upload: (label, text)."""
    total = format_bytes(sum(file.bytes for file in record.files))
    access = "private" if record.private else "public"
    return [
        ("repository", f"{record.url} ({access})"),
        ("files", f"{len(record.files)}, {total}"),
        ("commit", record.commit or "none"),
    ]
