"""From an address on the hub to a verified folder or file in the hub's cache."""

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.common.errors import UserError
from ldm.interop.files.values import read_json
from ldm.interop.hub import hashes
from ldm.interop.hub.address import Address, is_address, parse
from ldm.interop.hub.client import client, endpoint, explained, is_offline, is_unreachable
from ldm.interop.hub.selection import wanted

log = logging.getLogger("ldm")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit with their hashes, as the hub says (`online`) or as the cache has them."""

    commit: str
    files: dict[str, str | None]
    online: bool


def local(path: str | Path) -> Path:
    """A path as it is, and an address on the hub as the path of the download."""
    return fetch(path) if is_address(path) else Path(path)


def fetch(text: str | Path) -> Path:
    """Downloads what is read of the model, adapter or file at an address, and returns its path in the hub's cache.

    Every file is compared with the hub's hash, also if it was downloaded before. With HF_HUB_OFFLINE, or if the hub
    doesn't answer, the cache alone is used. Raises UserError if a file is missing, damaged, or can't be had.
    """
    address = parse(text)
    listing = _online(address) or _cached(address)

    def read(name: str) -> dict[str, Any]:
        """The JSON object in a file of the repository."""
        return read_json(_verified(address, listing, name))

    try:
        names = wanted(listing.files, address.inner, read, str(address))
    except UserError as error:
        if listing.online:
            raise
        raise UserError(
            f"{error} That is what is in the hub's cache, perhaps a part alone: load it again where there is a "
            "connection (without HF_HUB_OFFLINE)."
        ) from None
    for name in names:
        _verified(address, listing, name)
    _verify_beside(address, listing, names)
    if listing.online:
        _record_revision(address, listing, names[-1])
    return _snapshot(address, listing.commit) / address.inner


def _online(address: Address) -> Listing | None:
    """The files as the hub lists them; None if it can't be reached, when the cache may have them."""
    if is_offline():
        return None
    hub = client()
    try:
        with explained(str(address), address.repository, "try it again"):
            info = hub.HfApi(endpoint=endpoint()).model_info(
                address.repository, revision=address.revision, files_metadata=True
            )
    except UserError as error:
        if not isinstance(error.__cause__, Exception) or not is_unreachable(error.__cause__):
            raise
        commit = _cached_commit(address)
        if commit is None:
            raise UserError(
                f"{address}: {endpoint()} can't be reached ({type(error.__cause__).__name__}), and the cache doesn't "
                "have it: check the connection (and HF_ENDPOINT)."
            ) from None
        log.warning("%s can't be reached: taking %s at %s from the cache", endpoint(), address, commit)
        return None
    files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}
    return Listing(info.sha, files, True)


def _cached(address: Address) -> Listing:
    """The files that the cache has. Raises UserError if it has none of that revision."""
    commit = _cached_commit(address)
    folder = _snapshot(address, commit or "")
    if commit is None or not folder.is_dir():
        raise UserError(
            f"{address} isn't in the hub's cache ({client().constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to "
            "download it: unset that, or load it once where there is a connection."
        )
    files = [file for file in folder.rglob("*") if file.is_file()]
    return Listing(commit, {file.relative_to(folder).as_posix(): hashes.of_cached(file) for file in files}, False)


def _cached_commit(address: Address) -> str | None:
    """The commit that the cache has for the revision."""
    revision = address.revision or client().constants.DEFAULT_REVISION
    file = _storage(address) / "refs" / revision
    if file.is_file():
        return file.read_text().strip()
    return revision if (_storage(address) / "snapshots" / revision).is_dir() else None


def _storage(address: Address) -> Path:
    """The repository's folder in the hub's cache."""
    return Path(client().constants.HF_HUB_CACHE) / f"models--{address.repository.replace('/', '--')}"


def _snapshot(address: Address, commit: str) -> Path:
    return _storage(address) / "snapshots" / commit


def _verified(address: Address, listing: Listing, name: str) -> Path:
    """The file `name`, downloaded unless it is there, and compared with its hash.

    Raises UserError for another content, which is removed if it has come just now: nothing loads it by its path.
    """
    file = _snapshot(address, listing.commit) / name
    was_there = file.is_file()
    if not was_there and not listing.online:
        raise UserError(
            f"{address} is only partly in the hub's cache, {name} is missing: load it again where there is a "
            "connection (without HF_HUB_OFFLINE)."
        )
    if not was_there:
        _download(address, name, listing.commit)
    expected = listing.files.get(name)
    if expected is None:
        log.warning("%s: there is no hash of %s to compare it with", address, name)
    elif not hashes.is_intact(file, expected):
        _refuse(address, file, was_there)
    return file


def _refuse(address: Address, file: Path, was_there: bool) -> None:
    kind = "SHA-256 or git hash differs from the one that the hub has for it"
    if was_there:
        raise UserError(
            f"{file} of {address} was changed or is damaged, its {kind}: remove {file.resolve()} and load it again, "
            "which downloads it."
        )
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)
    raise UserError(f"{file.name} of {address} isn't the file that it should be, its {kind}: it was removed; try "
                    "again, and tell the repository's owner if it stays so.")  # fmt: skip


def _verify_beside(address: Address, listing: Listing, names: list[str]) -> None:
    """Verifies further files in the folders of the weights: other tools may have put variants there, which would be
    read."""
    snapshot = _snapshot(address, listing.commit)
    folders = {PurePosixPath(name).parent for name in names if name.endswith((".safetensors", ".bin"))}
    folders -= {PurePosixPath(address.inner).parent} if address.inner in names else set()
    for name in listing.files.keys() - set(names):
        if PurePosixPath(name).parent in folders and (snapshot / name).is_file():
            _verified(address, listing, name)


def _download(address: Address, name: str, revision: str) -> None:
    """Downloads one file, which appears under its name when it is whole."""
    where = f"the download of {name} from {address} stopped"
    with explained(where, address.repository, "load it again, which goes on where it stopped"):
        client().hf_hub_download(address.repository, name, revision=revision, endpoint=endpoint())


def _record_revision(address: Address, listing: Listing, name: str) -> None:
    """Records in the cache which commit a branch or tag is, for later use without a connection."""
    if address.revision != listing.commit:
        _download(address, name, address.revision or client().constants.DEFAULT_REVISION)
