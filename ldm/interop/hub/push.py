"""From a model, or a folder of files, to a repository on the hub, in one commit."""

import contextlib
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError, did_you_mean
from ldm.interop.export import FORMATS, export
from ldm.interop.exporting.bundle import frozen_in
from ldm.interop.exporting.card import folder_card
from ldm.interop.exporting.export_report import Report
from ldm.interop.hub.address import SCHEME, Address, is_address, parse
from ldm.interop.hub.client import client, endpoint, explained, is_offline

CARD = "README.md"
# What a model consists of in a repository: its folders, and its files outside of them.
_FOLDERS = re.compile(r"(model|unet|vae|scheduler|conditioner|controlnet|(text_encoder|tokenizer)(_\d+)?)/[^/]+")
_FILES = re.compile(
    r"(config|manifest|model_index|adapter_config)\.json|ldm_\w+\.py"
    r"|(model|diffusion_pytorch_model|adapter_model|pytorch_lora_weights)[-.\w]*\.(safetensors|bin|json)"
)


def push_model(
    model: Any,
    repository: str,
    to: str = "ldm",
    *,
    private: bool | None = None,
    message: str | None = None,
    dtype: str | None = None,
    licence: str | None = None,
    run: Path | None = None,
) -> str:
    """Pushes `model` as a model folder ("ldm"), as diffusers' ("diffusers") or as a "single_file": see
    `LatentDiffusion.push_to_hub`. `run` is the run whose data and scores the card reports."""
    address = check_target(repository)
    if to not in FORMATS:
        raise UserError(f"to={to} isn't a format to push.{did_you_mean(to, FORMATS)}")
    about = {"licence": licence, "run": run, "address": f"{SCHEME}{address.repository}"}
    with tempfile.TemporaryDirectory() as temporary, _unmoved(model):
        folder = Path(temporary, "model")
        file = f"{address.repository.split('/')[1]}.safetensors"
        report = export(model, folder / file if to == "single_file" else folder, to, about=about, dtype=dtype)
        if to != "diffusers":
            notes = report if to == "single_file" else Report()
            (folder / CARD).write_text(folder_card(model, notes, about, file if to == "single_file" else ""), "utf-8")
        pushed = push(folder, repository, private=private, message=message)
    return f"{pushed}/{file}" if to == "single_file" else pushed


def push(folder: Path, repository: str, *, private: bool | None = None, message: str | None = None) -> str:
    """Pushes the files of a folder to a repository, `OWNER/NAME` or `OWNER/NAME@BRANCH`, which is created if it doesn't
    exist, `private` or by the account's default. Returns the address with the new commit.

    Files of a model that was there before and that the new one doesn't have are removed by the same commit; all others
    stay, a model card among them.
    """
    address, hub = check_target(repository), client()
    api = hub.HfApi(endpoint=endpoint())
    with explained(f"{address} can't be pushed to", address.repository, "push it again"):
        api.create_repo(address.repository, private=private, exist_ok=True)
        if address.revision:
            api.create_branch(address.repository, branch=address.revision, exist_ok=True)
        there = set(api.list_repo_files(address.repository, revision=address.revision))
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        operations = _operations(hub, files, there)
        message = message or f"Push a model of ldm ({len(files)} files)"
        made = api.create_commit(
            address.repository, operations, commit_message=message, revision=address.revision or "main"
        )
    return str(Address(address.repository, made.oid))


def check_target(repository: str) -> Address:
    """The repository to push to. Raises UserError for an invalid address, and if HF_HUB_OFFLINE forbids pushing."""
    text = str(repository)
    address = parse(text if is_address(text) else f"{SCHEME}{text}")
    if address.inner:
        raise UserError(f"{repository}: a model is pushed to a whole repository: give OWNER/NAME or OWNER/NAME@BRANCH.")
    if is_offline():
        raise UserError(f"{repository}: HF_HUB_OFFLINE forbids to push: unset it.")
    return address


def _operations(hub: Any, files: Mapping[str, Path], there: Collection[str]) -> list[Any]:
    """The operations of the commit: it adds the files, except a card if there is one already, and deletes files of the
    replaced model that the new one lacks."""
    new = [name for name in sorted(files) if name != CARD or CARD not in there]
    added = [hub.CommitOperationAdd(name, str(files[name])) for name in new]
    old = sorted(name for name in there if name not in files and (_FOLDERS.fullmatch(name) or _FILES.fullmatch(name)))
    return [*added, *(hub.CommitOperationDelete(name) for name in old)]


@contextlib.contextmanager
def _unmoved(model: Any) -> Iterator[None]:
    """Frozen text encoders are where they were after the block: an export into a folder lets them use its copies."""
    parts = frozen_in(model) if hasattr(model, "modules") else []
    was = [(part, part.path, part.tokenizer_path, part.sha256, part._spec) for part in parts]
    try:
        yield
    finally:
        for part, path, tokenizer, sha256, spec in was:
            part.path, part.tokenizer_path, part.sha256 = path, tokenizer, sha256
            object.__setattr__(part, "_spec", spec)
