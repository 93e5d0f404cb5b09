"""Settings in the `config.yaml` that ai-toolkit writes beside a LoRA, compared with the LoRA's weights."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.common.errors import UserError, printable
from ldm.interop.files.beside_checkpoint import settings_in

log = logging.getLogger("ldm")
_RANKS = {"rank": False, "linear": False, "conv": True}  # whether a setting is for convolutions
_ALPHAS = {"alpha": False, "linear_alpha": False, "conv_alpha": True}


def warn_of_differences(
    path: str | Path, alphas: Mapping[str, float], ranks: Mapping[str, int], has_convolutions: bool
) -> None:
    """Warns, in one line, of ranks and alphas in ai-toolkit's config that no layer has. The weights are used.

    ai-toolkit writes alpha as tensors where it scales by it. For files without them it takes alpha to be the rank,
    whatever its config declares, and so does `strength.alphas`.
    """
    file = Path(path).with_name("config.yaml")
    if not file.is_file():
        return
    try:
        networks = list(_networks(settings_in(file)))
    except UserError as error:
        log.warning("%s: the settings beside it can't be read: %s", path, error)
        return
    known: dict[str, set[float]] = dict.fromkeys(_RANKS, {float(rank) for rank in ranks.values()})
    known |= dict.fromkeys(_ALPHAS, set(alphas.values()))
    different = [
        f"network.{key}={printable(str(network[key]))[:40]}"
        for network in networks
        for key, is_convolutions in (_RANKS | _ALPHAS).items()
        if network.get(key) is not None and network[key] not in known[key] and (has_convolutions or not is_convolutions)
    ]
    if different:
        log.warning(
            "%s: %s beside it declares %s, but the weights differ: the weights are used",
            path,
            file.name,
            ", ".join(different),
        )


def _networks(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The `network` section of each process in ai-toolkit's config; empty for the configs of other tools."""
    config = settings.get("config")
    processes = config.get("process") if isinstance(config, Mapping) else None
    for process in processes if isinstance(processes, list) else []:
        network = process.get("network") if isinstance(process, Mapping) else None
        if isinstance(network, Mapping):
            yield network
