"""What an encoder of transformers and the files that it was read from don't have in common.

transformers fills weights that the files lack at random, and leaves out those that a class doesn't have.
"""

import logging
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError
from ldm.conditioning.text.clip_names import canonical
from ldm.networks.computing.finite import not_finite

log = logging.getLogger("ldm")
POSITIONS = "position_ids"
# how encoders are read: what doesn't fit is left to `check_loaded`, which names it
READING = {
    "dtype": torch.float32,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,
    "trust_remote_code": False,
}
_NUMBER = re.compile(r"\.(\d+)\.")
_MOST = 4  # names in a message


def check_loaded(encoder: Any, info: Mapping[str, Any], config: Any, what: str) -> None:
    """Compares an encoder with `info`, transformers' report of loading it by the config of its folder.

    `what` names the encoder in messages. Raises UserError if the files lack weights of the encoder, have some of other
    shapes or values that aren't finite, or, written for its class, hold weights that the class doesn't have. Files of
    another class, such as a CLIP for text and images, may have more; what that class doesn't have either is named in a
    warning.
    """
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise UserError(
            f"{what}: {name} is {tuple(found)}, not {tuple(wanted)} as by its config.json: download it again."
        )
    _check_missing(encoder, info["missing_keys"], what)
    if bad := not_finite(encoder.state_dict()):
        raise UserError(f"{what} is damaged: {bad[0]} isn't finite; download it again.")
    more = sorted(name for name in map(str, info["unexpected_keys"]) if not name.endswith(POSITIONS))
    idle = _further_layers(encoder, more)
    more = [name for name in more if name not in idle]
    classes = getattr(config, "architectures", None) or ()
    if more and type(encoder).__name__ in classes:
        raise UserError(f"{what} can't be represented here: a {type(encoder).__name__} has no {_listed(more)}.")
    if more and (strange := _without(more, classes, config)):
        log.warning("%s holds weights that no %s has and that aren't used: %s",
                    what, " or ".join([type(encoder).__name__, *classes]), _listed(strange))  # fmt: skip
    if idle:
        log.warning("%s has fewer layers in its config.json than in its file: %d weights from %s on are unused",
                    what, len(idle), idle[0])  # fmt: skip


def _check_missing(encoder: Any, missing: Iterable[str], what: str) -> None:
    lacking = sorted(name for name in map(str, missing) if not name.endswith(POSITIONS))
    if any(name.startswith("pooler.") for name in lacking):
        encoder.pooler = None  # many files of BERT's and ViT's kind don't have it; the mean of the states replaces it
    if lacking := [name for name in lacking if not name.startswith("pooler.")]:
        raise UserError(f"{what} isn't whole: {_listed(lacking)} is missing; download it again.")


def _further_layers(encoder: Any, names: Iterable[str]) -> list[str]:
    """Weights of layers after the encoder's last one."""
    depth: dict[str, int] = {}
    for name in encoder.state_dict():
        stack, layer = _layer(name)
        depth[stack] = max(depth.get(stack, -1), layer)
    return [name for name in names if _layer(name)[1] > depth.get(_layer(name)[0], 10**9)]


def _layer(name: str) -> tuple[str, int]:
    """The stack of layers that a weight is in, under the name of any version of transformers, and the number of its
    layer; -1 for a weight outside all stacks."""
    parts = _NUMBER.split(canonical(name), maxsplit=1)
    return (parts[0], int(parts[1])) if len(parts) > 1 else ("", -1)


def _without(names: Iterable[str], classes: Iterable[str], config: Any) -> list[str]:
    """The names of weights that none of the given classes of transformers has."""
    known: set[str] = set()
    for name in classes:
        known |= _weights_of(name, config)
    return [name for name in names if canonical(name) not in known]


def _weights_of(class_name: str, config: Any) -> set[str]:
    """The weights' names of a class of transformers; empty for a class that it doesn't have or can't build."""
    import transformers

    try:
        with torch.device("meta"):
            return {canonical(name) for name in getattr(transformers, class_name)(config).state_dict()}
    except Exception:  # of a class that isn't public, or settings that each version refuses in another way
        return set()


def check_positions(folder: Path, variant: str | None, what: str, other_side: str) -> None:
    """Reports wrong `position_ids` in the weights of a folder, which transformers leaves out in silence.

    Those of the `other_side` of a model for text and images ("vision_model." or "text_model.") aren't used.
    """
    for name, ids in _positions_in(folder, variant).items():
        if not name.startswith(other_side):
            report_positions(ids, what)


def report_positions(ids: Tensor, what: str) -> None:
    """Warns of positions other than 0, 1, 2, ...: merging in half precision rounds them wrongly."""
    expected = torch.arange(ids.numel())
    wrong = (ids.flatten().float().cpu() != expected).nonzero().flatten().tolist()
    if wrong:
        log.warning(
            f"{what}: its position_ids are damaged at {len(wrong)} of {len(expected)} positions (the first is "
            f"{wrong[0]}): each token takes its own position here, as in diffusers; tools that read these numbers "
            "give other images."
        )


def _positions_in(folder: Path, variant: str | None) -> dict[str, Tensor]:
    """The tensors called `position_ids` in the files that transformers reads: one file or the pieces of one."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    middle = f".{variant}" if variant else ""
    stems = (f"model{middle}", f"model{middle}-*-of-*", f"model-*-of-*{middle}")
    files = {file for stem in stems for file in folder.glob(f"{stem}.safetensors")}
    for file in sorted(files):
        with safe_open(file, "pt") as opened:
            names = [name for name in list(opened.keys()) if name.endswith(POSITIONS)]
            found |= {name: opened.get_tensor(name) for name in names}
    for file in [] if files else sorted(folder.glob("pytorch_model*.bin")):
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        found |= {name: ids for name, ids in state.items() if name.endswith(POSITIONS) and isinstance(ids, Tensor)}
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
