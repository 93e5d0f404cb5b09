"""The version of Stable Diffusion that a file's metadata declare, compared with its U-Net."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.common.errors import printable
from ldm.interop.files.declared import each_setting
from ldm.interop.files.values import flag, is_off, word

log = logging.getLogger("ldm")
_OF_WIDTH = {768: "1", 1024: "2", 1280: "XL", 2048: "XL"}  # of the text states that a U-Net reads
_VERSIONS = {
    "sd_v1": "1", "sd_v2": "2", "sdxl": "XL", "stable_diffusion_v1": "1", "stable_diffusion_v2": "2",
    "stable_diffusion_xl": "XL",
}  # fmt: skip
_NAMES = ("ss_base_model_version", "modelspec_architecture")
_SWITCH = "ss_v2"
_OUR_OWN = "ldm_"  # prefix for the architecture of an export with other sizes than Stable Diffusion's


def warn(declared: Mapping[str, Any], context_dim: int | None, where: str) -> None:
    """Warns of declared versions other than that of the U-Net, which reads text of width `context_dim`."""
    for key, why in differences(declared, context_dim, where):
        log.warning("%s declares %s, but its U-Net %s: the weights are used", where, key, why)


def differences(declared: Mapping[str, Any], context_dim: int | None, where: str) -> Iterator[tuple[str, str]]:
    """Declared versions that differ from the U-Net's, each with what the U-Net reads.

    Raises UserError for a switch that is neither true nor false.
    """
    own = _OF_WIDTH.get(context_dim or 0)
    does = f"reads text of width {context_dim}" if context_dim else "reads no text"
    of = f", as Stable Diffusion {own}'s does" if own else ", as no Stable Diffusion's does"
    for key, value, versions in _claims(declared, where):
        if own not in versions:
            yield f"{printable(key)}={printable(str(value))[:40]}", does + of


def _claims(declared: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any, set[str | None]]]:
    """The key of each declared version, its value, and the versions that it allows."""
    for key, name, value in each_setting(declared):
        if name == _SWITCH and not flag(value, f"{where}: {key}"):
            yield key, value, {"1", "XL", None}
        elif name == _SWITCH:
            yield key, value, {"2"}
        elif name in _NAMES and not is_off(value) and not word(str(value)).startswith(_OUR_OWN):
            yield key, value, {v for known, v in _VERSIONS.items() if word(str(value)).startswith(known)}
