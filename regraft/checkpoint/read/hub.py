"""A model on the Hub: small files and headers first, a shard when one of its tensors is read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from regraft import progress
from regraft.checkpoint.read.files import Folder, is_inside
from regraft.checkpoint.read.header import MAX_HEADER, local_head
from regraft.errors import CheckpointError


class Hub:
    """The files of a Hub repository at one commit, as `Files`.

    They come from huggingface_hub's cache or the network; offline, only cached files exist.
    """

    def __init__(self, repo: str, revision: str | None) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import (
            HFValidationError,
            HTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        self.repo = repo
        self.where = repo if revision is None else f"{repo}@{revision}"
        self.remedy = "the repository is incomplete, so choose another"
        self._snapshot: Path | None = None  # the folder in the cache, when offline
        try:
            info = HfApi().model_info(repo, revision=revision, timeout=20)
            self.revision: str | None = info.sha
            listed = [sibling.rfilename for sibling in info.siblings or []]
            self._names = [name for name in listed if is_inside(name)]
            if "config.json" in self._names:
                # By branch, not by commit, so that the cache stores where the branch points and
                # the model opens offline by the same name.
                self._download("config.json", revision or "main")
        except HFValidationError as error:
            raise CheckpointError(
                f"{repo} is neither a local folder nor a possible Hub id; give a model folder or "
                "org/name@revision."
            ) from error
        except (HTTPError, OfflineModeIsEnabled) as error:
            status = getattr(getattr(error, "response", None), "status_code", 503)
            if isinstance(error, RepositoryNotFoundError) or status < 500:
                raise self._explain(error) from error
            cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
            ref = cache / "refs" / (revision or "main")
            commit = ref.read_text().strip() if ref.is_file() else revision or "main"
            self._snapshot = cache / "snapshots" / commit
            if not self._snapshot.is_dir():
                raise self._explain(error) from error
            self.revision = commit
            self.remedy = "the Hub cannot be reached, so connect (and unset HF_HUB_OFFLINE) once"
            self._names = Folder(self._snapshot).names()

    def names(self) -> list[str]:
        return self._names

    def has(self, name: str) -> bool:
        return name in self._names

    def path(self, name: str) -> Path:
        if self._snapshot is not None:
            if not (self._snapshot / name).is_file():
                raise CheckpointError(
                    f"{name} of {self.where} is not in the local Hub cache; {self.remedy}."
                )
            return self._snapshot / name
        return self._download(name, self.revision)

    def _download(self, name: str, revision: str | None) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HTTPError

        try:
            with _hub_bars():
                return Path(hf_hub_download(self.repo, name, revision=revision))
        except (HTTPError, EntryNotFoundError) as error:
            raise self._explain(error, name) from error
        except OSError as error:
            raise CheckpointError(
                f"{name} of {self.where} cannot be stored in the Hub cache "
                f"({error.strerror or error}); free space there or set HF_HOME to another disk."
            ) from error

    def heads(self, shards: list[str]) -> list[tuple[bytes, int]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._head, shards))

    def fetch(self, names: list[str]) -> None:
        with _hub_bars(), ThreadPoolExecutor(4) as pool:
            list(pool.map(self.path, names))

    def _head(self, shard: str) -> tuple[bytes, int]:
        from huggingface_hub import hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HTTPError

        cached = try_to_load_from_cache(self.repo, shard, revision=self.revision)
        if isinstance(cached, str) or self._snapshot is not None:
            return local_head(self.path(shard))
        url = hf_hub_url(self.repo, shard, revision=self.revision)
        try:
            # 97 headers of 100 fit in the first 100 kB (huggingface_hub PR 1855).
            head, size = _get_range(url, 0, 100_000)
            length = int.from_bytes(head[:8], "little")
            if len(head) < min(8 + length, size) and length <= MAX_HEADER:
                head += _get_range(url, len(head), 8 + length - 1)[0]
        except HTTPError as error:
            raise self._explain(error, shard) from error
        return head, size

    def _explain(self, error: Exception, name: str | None = None) -> CheckpointError:
        """The answer of the Hub as one sentence."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"The Hub model {self.repo} is gated: ask for access on its page, then log in with "
                "`hf auth login`."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(
                f"The Hub model {self.repo} has no revision '{self.where.partition('@')[2]}'; "
                "give a branch, tag or commit that its page lists."
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            return CheckpointError(
                f"{self.repo} is neither a local folder nor a model on the Hub that you may read; "
                "check the spelling, and log in with `hf auth login` if it is private."
            )
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return CheckpointError(f"The Hub model {self.where} has no file {name}.")
        if status is not None:
            return CheckpointError(
                f"The Hub answered {status} for {name or 'the model'} of {self.where}; try again "
                "later or download the model to a folder."
            )
        return CheckpointError(
            f"{self.where} is not a local folder, and the Hub cannot be reached "
            f"({type(error).__name__}) to get {name or 'it'}; check the network or download the "
            "model to a folder."
        )


def _get_range(url: str, first: int, last: int) -> tuple[bytes, int]:
    """Bytes [first, last] of a URL, and the size of the whole file."""
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers

    headers = {
        **build_hf_headers(),
        "Range": f"bytes={first}-{last}",
        "Accept-Encoding": "identity",
    }
    response = get_session().get(url, headers=headers, timeout=30)
    hf_raise_for_status(response)
    data = response.content
    if response.status_code != 206:  # the server sent the whole file
        return data[first : last + 1], len(data)
    return data, int(response.headers["Content-Range"].rpartition("/")[2])


@contextmanager
def _hub_bars() -> Iterator[None]:
    """Silence huggingface_hub's progress bars where ours are silent."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silence = progress.console().quiet and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()
