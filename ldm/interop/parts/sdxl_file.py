"""Stable Diffusion XL in one file, under Stability AI's names: what differs from Stable Diffusion 1 and 2."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.common.errors import UserError
from ldm.conditioning import Conditioner, FrozenText
from ldm.interop.parts import sdxl
from ldm.interop.parts.clip_text import encoder_from_weights, from_clip_names, from_open_clip_names
from ldm.interop.parts.to_clip import to_clip_names, to_open_clip_names
from ldm.interop.settings import text_settings

TEXT = "conditioner.embedders."
SIZE = 1024
FEATURES = 256
_REFINER = f"{TEXT}0.model."
ACTIVATIONS = ("quick_gelu", "gelu")  # of the two encoders; no file declares them


def is_xl(names: Iterable[str]) -> bool:
    """Whether a file with these names holds Stable Diffusion XL's text encoders."""
    return any(name.startswith(TEXT) for name in names)


def refuse_refiner(names: Iterable[str], where: str) -> None:
    """Raises UserError for the refiner of Stable Diffusion XL."""
    if any(name.startswith(_REFINER) for name in names):
        raise UserError(f"{where} holds Stable Diffusion XL's refiner ({_REFINER}), which can't be represented here.")


def conditioner(
    state: Mapping[str, Tensor],
    folder: Path,
    path: Path,
    declared: Mapping[str, Any],
    network: Any,
    size: tuple[int, int],
) -> Conditioner:
    """The two text encoders of a file's weights (prefix removed), with the tokenizers in `folder`, a pipeline's, and
    the image sizes. `declared` is what the file says of its text encoders."""
    parts: list[FrozenText] = []
    read: dict[str, Any] = {}
    for i, (names, suffix) in enumerate((("transformer.", ""), ("model.", "_2"))):
        weights = {n.removeprefix(f"{i}."): t for n, t in state.items() if n.startswith(f"{i}.{names}")}
        words, encoder = folder / f"tokenizer{suffix}", folder / f"text_encoder{suffix}"
        if not words.is_dir():
            raise UserError(
                f"text_encoder={folder}: {words.name} is missing; it belongs to Stable Diffusion XL's two tokenizers."
            )
        if not weights:
            raise UserError(f"{path} isn't a whole checkpoint: {TEXT}{i}.{names} is missing.")
        ours = from_clip_names(weights) if i == 0 else from_open_clip_names(weights, whole=True)
        if i == 0:
            read = text_settings.of_xl(declared, len(ours["embeddings.position_embedding.weight"]), str(path))
        parts.append(encoder_from_weights(ours, encoder, words, where=path, options=sdxl.READINGS[i] | read))
    if unread := [n for n in state if not n.startswith(("0.transformer.", "1.model."))]:
        raise UserError(f"{path} can't be represented here: it holds {TEXT}{unread[0]}, which isn't supported.")
    text = sum(part.vector_dim or 0 for part in parts)
    features = (network.vector_dim - text) // 6 if network.vector_dim else FEATURES
    found = sdxl.conditioner(parts, True, max(features, 2), size)
    sdxl.check_fit(network, found, str(path))
    return found


def to_text(encoders: list[FrozenText]) -> dict[str, Tensor]:
    """The weights of both encoders under the file's names."""
    first, second = (part.encoder.state_dict() for part in encoders)
    named = {f"0.{name}": tensor for name, tensor in to_clip_names(first).items()}
    named |= {f"1.{name}": tensor for name, tensor in to_open_clip_names(second, whole=True).items()}
    return {TEXT + name: tensor for name, tensor in named.items()}


def obstacles(network: Any, found: Conditioner) -> list[str]:
    """Why conditions with two encoders can't be stored in a Stable Diffusion XL file."""
    reasons = sdxl.obstacles(found)
    if not sdxl.is_xl_unet(network):
        reasons.append("the U-Net reads its vector through one layer (network.vector_layers=2)")
    for part, wanted, which in zip(sdxl.encoders_of(found), ACTIVATIONS, ("first", "second"), strict=True):
        config = part.encoder.config
        if part.limit(part.tokenizer) != config.max_position_embeddings:
            reasons.append(f"its captions aren't padded to {config.max_position_embeddings} tokens (length)")
        if config.hidden_act != wanted:
            reasons.append(f"its {which} text encoder's activation is {config.hidden_act}, but readers assume {wanted}")
    if found.parts and not sdxl.zeros_of(found):
        reasons.append(
            "without a prompt it reads the states of the empty one, but readers assume zeros (JoinedText's zeros=true)"
        )
    return reasons
