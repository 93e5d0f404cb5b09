"""Files beside a single-file checkpoint: its config `NAME.yaml`, where CompVis's tools and A1111 look for it, and an
autoencoder `NAME.vae.safetensors`, which A1111 uses instead of the checkpoint's own."""

import logging
from pathlib import Path
from typing import Any

import yaml

from ldm.common.errors import UserError

log = logging.getLogger("ldm")
_LONGEST = 1_000_000
_VAES = (".vae.safetensors", ".vae.pt", ".vae.ckpt")


def settings_beside(path: Path) -> dict[str, Any]:
    """The settings in `NAME.yaml` or `NAME.yml`, under that file's name; empty without such a file."""
    files = [path.with_suffix(suffix) for suffix in (".yaml", ".yml")]
    return {file.name: settings_in(file) for file in files if file.is_file()}


def warn_of_vae(path: Path) -> None:
    """Warns of an autoencoder beside the checkpoint, which isn't used."""
    for name in [path.stem + suffix for suffix in _VAES if path.with_name(path.stem + suffix).is_file()]:
        log.warning("%s: the checkpoint's own autoencoder is used, not the one beside it, %s", path, name)


def parsed(text: str, where: str) -> Any:
    """YAML without Python tags, and without aliases, which can expand to more than memory holds."""
    try:
        if len(text) > _LONGEST or any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UserError(f"{where} is longer than {_LONGEST} letters or has aliases: write its settings out.")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} can't be read as YAML ({type(error).__name__}).") from None


def settings_in(file: Path) -> dict[str, Any]:
    """The table of settings in a YAML file. Raises UserError where there is none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as text ({type(error).__name__}).") from None
    content = parsed(text, str(file))
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no table of settings: remove it, or replace it with the checkpoint's config.")
    return content
