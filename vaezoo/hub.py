"""The Hugging Face hub: addresses such as hf://user/name, and files from there and to there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vaezoo.errors import VaezooError

PREFIX = "hf://"
ADDRESS = re.compile(rf"{PREFIX}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def is_address(path: str | Path) -> bool:
    """Whether this is meant as an address on the hub, and not as a path."""
    return str(path).startswith(PREFIX)


def fetch(address: str, patterns: Sequence[str]) -> Path:
    """A folder with the files of a repository that match, from the hub or from the cache of earlier times.

    Raises:
        VaezooError: no such address, `huggingface_hub` is not installed, or the hub does not answer.
    """
    repository, revision = _parse(address)
    with _explained(f"could not get {address}"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def upload(folder: Path, address: str, private: bool) -> None:
    """Put the files of a folder into a repository, which is made if there is none yet.

    Raises:
        VaezooError: as in `fetch`, or the hub does not know the user.
    """
    repository, revision = _parse(address)
    with _explained(f"could not write {address}"):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, revision=revision)


def _parse(address: str) -> tuple[str, str | None]:
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise VaezooError(
            f"'{address}' is not an address on the Hugging Face hub: write {PREFIX}user/name, or "
            f"{PREFIX}user/name@revision"
        )
    return match["repository"], match["revision"]


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """One sentence for whatever the hub, the network or their packages raise inside."""
    try:
        yield
    except ImportError:
        raise VaezooError(f"{failure}: the hub needs one more package: pip install 'vaezoo[hub]'") from None
    except Exception as error:  # of several libraries, without a base class that they share
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VaezooError(
            f"{failure}: {reason} (after `hf auth login`, private ones can be reached)"
        ) from error
