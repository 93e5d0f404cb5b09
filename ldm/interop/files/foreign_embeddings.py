"""Files of embeddings of words (textual inversion): diffusers' and A1111's, read and written.

    diffusers    {WORD: (N, D) or (D,)}, as learned_embeds.safetensors or learned_embeds.bin
    A1111        {"emb_params": (N, D)} as NAME.safetensors; {"string_to_param": {"*": (N, D)}, "name": WORD} as NAME.pt
    both, XL     {"clip_l": (N, D), "clip_g": (N, D')} for the two text encoders

Pickled files are read only if they hold nothing but tensors and plain data.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.common.files import atomic_write
from ldm.common.tensors import write_safetensors
from ldm.networks.computing.finite import is_finite

FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
FORMATS = ("diffusers", "a1111")
_PAIR = ("clip_l", "clip_g")
_ONE, _PARAMS = "emb_params", "string_to_param"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def embedding_in(names: Iterable[str]) -> str:
    """What a file with these entries holds, and what to do with it; empty if it isn't an embedding."""
    names = list(names)
    is_diffusers = 0 < len(names) < 3 and all(re.fullmatch(r"<.+>", name) for name in names)
    if not is_diffusers and not set(names) & {_ONE, _PARAMS, *_PAIR}:
        return ""
    return "an embedding of a word (textual inversion): add it to a model with model.load_word(PATH)"


def file_at(path: Path) -> Path | None:
    """The file of another tool's embedding at a path: the path itself, or diffusers' file in a folder."""
    if path.is_file():
        return path if path.suffix.lower() in (".safetensors", *_PICKLED) else None
    return next((path / name for name in FILES if (path / name).is_file()), None)


def read(file: Path, word: str | None = None) -> tuple[str, list[Tensor]]:
    """The word in a file, or `word` in its place, and its embeddings (N, D) in float32, one for each text encoder.

    A1111's files don't always name the word: its name is then the file's. Raises UserError for any other file.
    """
    content = _content(file)
    named, found = _embeddings(content, file)
    return word or named or file.stem, [_checked(one, file) for one in found]


def _content(file: Path) -> dict[str, Any]:
    """The entries of a file."""
    try:
        if file.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"{file} can't be read without running its code, or is damaged ({type(error).__name__}): get it as "
            ".safetensors, or download it again."
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}, not the embedding of a word.")
    return {str(name): value for name, value in content.items()}


def _embeddings(content: Mapping[str, Any], file: Path) -> tuple[str | None, list[Any]]:
    """The word that the entries name, if they do, and the embeddings for each text encoder."""
    if set(_PAIR) & set(content):
        if missing := [name for name in _PAIR if name not in content]:
            raise UserError(f"{file} has no {missing[0]}: it isn't whole; download it again.")
        _refuse_unread(content, _PAIR, file)
        return None, [content[name] for name in _PAIR]
    if _PARAMS in content:
        params = content[_PARAMS]
        if not isinstance(params, Mapping) or len(params) != 1:
            raise UserError(f"{file}: {_PARAMS} holds no single embedding, and one word at a time is read.")
        _refuse_unread(content, (_PARAMS,), file)
        return _name_in(content), list(params.values())
    if _ONE in content:
        _refuse_unread(content, (_ONE,), file)
        return _name_in(content), [content[_ONE]]
    if len(content) != 1:
        shown = ", ".join(sorted(content)[:4])[:120]
        raise UserError(f"{file} isn't the embedding of a word: its entries are {shown}.")
    return next(iter(content)), list(content.values())


def _refuse_unread(content: Mapping[str, Any], read: Sequence[str], file: Path) -> None:
    """Raises UserError for tensors beside those that are read: OneTrainer's (`clip_l_out`), a T5's."""
    if unread := [name for name, value in content.items() if isinstance(value, Tensor) and name not in read]:
        raise UserError(
            f"{file} holds {', '.join(unread)[:120]} too, which no text encoder here takes: train the word without "
            "output embeddings, for CLIP alone."
        )


def _name_in(content: Mapping[str, Any]) -> str | None:
    name = content.get("name")
    return name if isinstance(name, str) and name else None


def _checked(value: Any, file: Path) -> Tensor:
    """An embedding (D,) or (N, D) as (N, D) in float32. Raises UserError for anything else."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.numel() or not value.is_floating_point():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{file} isn't the embedding of a word: it holds {shape}, where (vectors, width) belongs.")
    rows = value.detach().float().reshape(-1, value.shape[-1])
    if not is_finite(rows):
        raise UserError(f"{file}: its embedding isn't finite: the file is damaged; download it again.")
    return rows


def write(out: Path, word: str, rows: Sequence[Tensor], to: str) -> Path:
    """Writes a word's embeddings (N, D), one for each text encoder, and returns the file.

    `to` is "diffusers", whose file in a folder is learned_embeds.safetensors, or "a1111", whose file is named after the
    word, since that is how a web UI calls it. The file's ending says whether it is pickled.
    """
    if to not in FORMATS:
        raise UserError(f"to={to} isn't a format of embeddings.{did_you_mean(to, FORMATS)}")
    ending = out.suffix.lower()
    if ending not in (".safetensors", ".bin", ".pt"):
        stem = re.sub(r"[^-.\w]+", "", word) or "word"
        out = out / (FILES[0] if to == "diffusers" else f"{stem}.safetensors")
    tensors = [one.detach().float().cpu().contiguous() for one in rows]
    content = _entries(word, tensors, to, pickled=out.suffix != ".safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        atomic_write(out, lambda file: write_safetensors(file, content))
    else:
        atomic_write(out, lambda file: torch.save(content, file))
    return out


def _entries(word: str, rows: Sequence[Tensor], to: str, pickled: bool) -> dict[str, Any]:
    """The entries of a file: see above."""
    if len(rows) == 2:
        return dict(zip(_PAIR, rows, strict=True))
    if to == "diffusers":
        return {word: rows[0]}
    if not pickled:
        return {_ONE: rows[0]}
    return {"string_to_token": {"*": 265}, _PARAMS: {"*": rows[0]}, "name": word, "step": None}
