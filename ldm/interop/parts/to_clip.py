"""transformers' CLIP text model under its names inside a Stable Diffusion checkpoint: the inverse of `clip_text`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.conditioning.text.clip_names import TEXT_MODEL, canonical
from ldm.interop.files.name_tables import by_prefix, rename
from ldm.interop.parts.compvis import CLIP_BLOCK, indices, open_clip_modules

_PLACES = "embeddings.position_embedding.weight"
_ATTENTION = tuple(f".self_attn.{part}_proj." for part in "qkv")


def to_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of Stable Diffusion 1: transformers' own, with `text_model.`, under a prefix."""
    return {f"transformer.{canonical(name)}": tensor for name, tensor in _weights(state).items()}


def to_open_clip_names(state: Mapping[str, Tensor], whole: bool = False) -> dict[str, Tensor]:
    """The names of Stable Diffusion 2 and XL: OpenCLIP's, with query, key and value in one matrix.

    Files of 2 end with a block that readers expect and don't use; here it is a copy of the one before. Those of XL have
    the `whole` encoder, with the projection.
    """
    ours = {name.removeprefix(TEXT_MODEL): tensor for name, tensor in _weights(state).items()}
    projection = ours.pop("text_projection.weight", None)
    layers = len(indices(ours, "encoder.layers."))
    joined = {name for name in ours if any(part in name for part in _ATTENTION)}
    rest = {name: tensor for name, tensor in ours.items() if name not in joined and name != _PLACES}
    table = by_prefix(rest, open_clip_modules(layers), CLIP_BLOCK)
    theirs = rename(rest, table, "the text encoder") | {"model.positional_embedding": ours[_PLACES]}
    for i in range(layers):
        for leaf in ("weight", "bias"):
            parts = [ours[f"encoder.layers.{i}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            theirs[f"model.transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(parts)
    if whole:
        assert projection is not None
        return theirs | {"model.text_projection": projection.T.contiguous()}
    last, idle = (f"model.transformer.resblocks.{i}." for i in (layers - 1, layers))
    return theirs | {idle + name[len(last) :]: tensor for name, tensor in theirs.items() if name.startswith(last)}


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
