"""The text encoder inside a Stable Diffusion checkpoint: CLIP under transformers' names (1.x) or OpenCLIP's (2.x).

This is the way in; `to_clip` is the way out.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning import FrozenText
from ldm.conditioning.text.clip_names import TEXT_MODEL
from ldm.conditioning.text.encoders import check_activation, load_tokenizer
from ldm.conditioning.text.loaded_weights import POSITIONS, report_positions
from ldm.interop.files.name_tables import by_prefix, inverse, refuse_twice, rename
from ldm.interop.files.values import read_json, whole
from ldm.interop.parts.compvis import CLIP_BLOCK, indices, open_clip_modules
from ldm.interop.settings import text_settings

log = logging.getLogger("ldm")
_FIRST = "transformer."
_NO_STATE = ("logit_scale",)  # compares texts with images; no state depends on it
_MASK = "model.attn_mask"
_IDLE = ("model.text_projection", "model.logit_scale", _MASK)
_JOINED = "attn.in_proj_"
PROJECTION = "text_projection.weight"


def load_clip(state: Mapping[str, Tensor], folder: Path, where: Path, declared: Mapping[str, Any]) -> FrozenText:
    """The text encoder from a checkpoint's weights (prefix removed), with the tokenizer in `folder`, read as
    `declared`.

    Without weights, the encoder in the folder is used. `folder` is either that of a pipeline, with `tokenizer` and
    perhaps `text_encoder` in it, or that of the tokenizer itself.
    """
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    encoder = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    if not state:
        file = encoder / "config.json"
        length = whole(read_json(file).get("max_position_embeddings", 77), f"{file}: max_position_embeddings")
        options = {"length": length, **text_settings.of_file(declared, None, length, str(where))}
        return FrozenText(str(encoder), str(tokenizer), masked=False, **options)
    weights = from_clip_names(state) if any(n.startswith(_FIRST) for n in state) else from_open_clip_names(state)
    length, layers = len(weights["embeddings.position_embedding.weight"]), len(indices(weights, "encoder.layers."))
    is_open = not any(n.startswith(_FIRST) for n in state)
    read = text_settings.of_file(declared, (layers, is_open), length, str(where))
    return encoder_from_weights(weights, encoder, tokenizer, where=where, options=read)


def encoder_from_weights(
    weights: Mapping[str, Tensor], encoder: Path, tokenizer: Path, where: Path, options: Mapping[str, Any]
) -> FrozenText:
    """A text encoder in memory with `weights`, under transformers' names without `text_model.`.

    What the weights don't determine comes from the config in the folder `encoder`; `options` are how the encoder is
    read.
    """
    model = _build(weights, encoder, str(where), bool(options.get("projected")))
    length, dim = weights["embeddings.position_embedding.weight"].shape
    sizes = {"length": int(length), "masked": False, "dim": int(dim)}
    sizes |= {"pooled_dim": len(weights[PROJECTION])} if options.get("projected") else {}
    part = FrozenText(str(where), str(tokenizer), **{**sizes, **options})
    part.hold(load_tokenizer(str(tokenizer)), model)
    return part


def from_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stable Diffusion 1's weights as transformers names them: files have these names under a prefix, which is removed.

    `text_model.`, which files written by newer versions lack, is removed too. Raises UserError for a weight that is
    there under both names.
    """
    table = {n: n.removeprefix(_FIRST).removeprefix(TEXT_MODEL) for n in state if n.startswith(_FIRST)}
    refuse_twice(table, "the text encoder")
    if rest := sorted(n for n in state if n not in table and n not in _NO_STATE):
        log.warning(
            "the text encoder: %d tensors have no counterpart here and are left out: %s, ...", len(rest), rest[0]
        )
    named = {name: state[theirs] for theirs, name in table.items()}
    for name in [n for n in named if n.endswith(POSITIONS)]:
        report_positions(named.pop(name), "the text encoder")
    return named


def from_open_clip_names(state: Mapping[str, Tensor], whole: bool = False) -> dict[str, Tensor]:
    """Stable Diffusion 2's and XL's weights as transformers names them: files have OpenCLIP's names, and query, key and
    value in one matrix. The last block isn't used, so it is left out, unless `whole`, with the projection."""
    _report_mask(state.get(_MASK))
    layers = len(indices(state, "model.transformer.resblocks.")) - (not whole)
    last = f"model.transformer.resblocks.{layers}."
    kept = {n: t for n, t in state.items() if not n.startswith((last, *_IDLE))}
    joined = {n: t for n, t in kept.items() if _JOINED in n}
    places = kept.pop("model.positional_embedding")
    table = inverse(_table([n for n in kept if n not in joined], layers))
    ours = rename({n: t for n, t in kept.items() if n not in joined}, table, "the text encoder")
    ours["embeddings.position_embedding.weight"] = places
    if whole:
        ours[PROJECTION] = state["model.text_projection"].T.contiguous()
    for name, tensor in joined.items():
        block, leaf = name.split(".")[3], name.rsplit("_", 1)[1]
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            ours[f"encoder.layers.{block}.self_attn.{part}_proj.{leaf}"] = piece
    return ours


def _report_mask(mask: Tensor | None) -> None:
    """Warns of an attention mask (L, L) other than CLIP's, in which a token attends to itself and those before it."""
    if mask is None:
        return
    seen = mask.float() > -1e4
    if mask.ndim != 2 or not torch.equal(seen, torch.ones_like(seen).tril()) or mask[seen].any():
        log.warning(
            "the text encoder: attn_mask isn't the causal mask of CLIP, which is used here, as in diffusers; tools "
            "that read this one give other images."
        )


def _table(theirs: list[str], layers: int) -> dict[str, str]:
    """{transformers': OpenCLIP's} for the given names of OpenCLIP."""
    modules, parts = inverse(open_clip_modules(layers)), inverse(CLIP_BLOCK)
    return inverse(by_prefix(theirs, modules, parts))


def _build(weights: Mapping[str, Tensor], folder: Path, where: str, projected: bool = False) -> Any:
    """A CLIPTextModel with `weights`, which determine its sizes; other settings come from the config in the folder."""
    import transformers
    from transformers import CLIPTextConfig

    from ldm.artifact import refuse_not_finite, report_mismatch

    config = _config(weights, folder)
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    with torch.device("meta"):
        model = cls(CLIPTextConfig(**config))
    wanted = model.state_dict()
    prefix = TEXT_MODEL if any(n.startswith(TEXT_MODEL) for n in wanted) else ""
    named = {n if n == PROJECTION else prefix + n: t for n, t in weights.items()}
    report_mismatch(wanted, named, f"{where}: the text encoder")
    refuse_not_finite(named, f"{where}: the text encoder")
    model = cls(CLIPTextConfig(**config))  # off the meta device, as no file holds its buffers
    model.load_state_dict(named, assign=True)
    return model


def _config(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    layers = len(indices(weights, "encoder.layers."))
    vocabulary, dim = weights["embeddings.token_embedding.weight"].shape
    inner = weights["encoder.layers.0.mlp.fc1.weight"].shape[0]
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "max_position_embeddings": weights["embeddings.position_embedding.weight"].shape[0],
    }
    file = folder / "config.json"
    given = read_json(file) if file.is_file() else {}
    second = dim == 1024 or PROJECTION in weights
    if second and PROJECTION in weights:
        sizes["projection_dim"] = len(weights[PROJECTION])
    guess = {"num_attention_heads": max(1, dim // 64), "hidden_act": "gelu" if second else "quick_gelu"}
    kept = ("num_attention_heads", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id", "layer_norm_eps")
    config = guess | {k: given[k] for k in kept if k in given} | sizes
    check_activation(config["hidden_act"], str(file))
    return config
