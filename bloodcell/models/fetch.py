"""Download a model's public weights, whole or not at all; where that cannot work, say what to get by hand."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bloodcell.models.library import address
from bloodcell.models.spec import ModelSpec
from shards.atomic import disk_errors, open_atomic
from shards.console import progress
from shards.errors import BadInput, EnvironmentFault

SECONDS = 20.0
"""A server that does not answer for so long is given up."""

CHUNK = 1 << 20
_HASH = re.compile(r"-([0-9a-f]{8,})\.[a-z]+$")  # in the names of published files: how their SHA-256 begins


def own_folder() -> Path:
    """Return the folder of this user for downloaded weights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bloodcell" / "weights"


def by_hand(known: ModelSpec, folder: Path) -> str:
    """Return what a person has to do to get the weights: which file, from whom, where to put it."""
    public = known.weights
    assert public is not None
    page = public.page or public.origin.replace(":", " ", 1)
    paper = f", {known.source}" if known.source else ""
    return f"get {public.file} ({page}{paper}) and put it into {folder}"


def fetch(known: ModelSpec, name: str, folder: Path) -> Path:
    """Download the public weights of a model to FOLDER/<name> with the ending of the published file.

    Args:
        known: the model; it has public weights.
        name: of the file, without its ending.
        folder: made if it is not there.

    Raises:
        BadInput: the folder cannot be written.
        EnvironmentFault: no network, a full disk, or a download that is not what was published.
    """
    public = known.weights
    assert public is not None
    check_online(known, folder)
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder cannot be made: {error.strerror}", folder, "choose another with --to") from error
    kind, place = address(public.origin)
    target = folder / f"{name}{Path(place).suffix}"
    try:
        # One plain request in place of the hub's own client, which tries for half a minute where there is no network.
        download(_hub_address(place) if kind == "hf" else place, target, public.file)
    except (BadInput, EnvironmentFault):
        raise
    except Exception as error:  # each library, and each layer below it, has its own errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvironmentFault(
            f"the download failed ({type(error).__name__}: {reason[:150]})", known.name, by_hand(known, folder)
        ) from error
    return target


def download(url: str, target: Path, published: str) -> None:
    """Write what lies at `url` to `target`, whole or not at all.

    Args:
        url: its address.
        target: the file; its folder exists.
        published: name under which the file is published; a hash in it must agree.

    Raises:
        EnvironmentFault: the disk is full, or the content is another one.
    """
    digest, size = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "bloodcell"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer, open_atomic(target) as file:
        total = int(answer.headers.get("Content-Length") or 0)
        chunks = iter(lambda: answer.read(CHUNK), b"")
        for chunk in progress(chunks, f"{target.name} (MiB)", -(-total // CHUNK)):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
        if total and size != total:
            raise EnvironmentFault(f"the download ended after {size:,} of {total:,} bytes", target, "start again")
        expected = _HASH.search(published)
        if expected and not digest.hexdigest().startswith(expected.group(1)):
            raise EnvironmentFault(
                f"what was downloaded is not {published}: its SHA-256 is {digest.hexdigest()[:16]}…",
                target,
                "a proxy may have answered instead: look at the network, then start again",
            )


def in_hub_cache(place: str) -> Path | None:
    """Return the file OWNER/REPOSITORY/FILE of the Hugging Face hub if this machine has it already."""
    from huggingface_hub import try_to_load_from_cache

    repository, file = _halves(place)
    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except OSError:
        yield  # nothing can be written here: the download itself will say so
        return
    try:
        yield
    finally:
        lock.release()


def check_online(known: ModelSpec, folder: Path) -> None:
    """Raise EnvironmentFault if HF_HUB_OFFLINE forbids the network (which means the network as a whole here)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise EnvironmentFault("HF_HUB_OFFLINE forbids the network", known.name, by_hand(known, folder))


def _hub_address(place: str) -> str:
    from huggingface_hub import hf_hub_url

    repository, file = _halves(place)
    return hf_hub_url(repository, file)


def _halves(place: str) -> tuple[str, str]:
    owner, name, file = place.split("/", 2)
    return f"{owner}/{name}", file
