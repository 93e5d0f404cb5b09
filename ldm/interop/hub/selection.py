"""Which files of a repository belong to a model: those that `ldm.load` and its siblings read, and none that only other
tools read.

Code and unread copies of weights (other variants, pickled ones beside safetensors, other frameworks) are left out.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from ldm.common.errors import UserError

INDEX, MANIFEST = "model_index.json", "manifest.json"
_PLAIN = (".json", ".txt", ".model")  # configs, and what tokenizers consist of
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)(?P<variant>\.\w+)?(?P<piece>-\d{5}-of-\d{5})?"
    r"(?P<second>\.\w+)?(?P<ending>\.safetensors|\.bin)(?P<index>\.index(?P<third>\.\w+)?\.json)?"
)
_ADAPTERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
_PICKLED = "learned_embeds.bin"  # of which many repositories have no other form
_BUNDLED = re.compile(r"(text_encoder|tokenizer)(_\d+)?/")  # in a model folder
_UNREAD = ("safety_checker", "feature_extractor", "image_encoder")  # parts of pipelines


def wanted(names: Collection[str], inner: str, read_json: Callable[[str], Mapping[str, Any]], where: str) -> list[str]:
    """The files to download of a repository with the files `names`, for the file or folder `inner` in it.

    `read_json` gives the content of one of them. The last file is the one that marks a model folder as whole. Raises
    UserError if there is nothing that is read.
    """
    if inner in names:
        return [*_settings_beside(names, inner), inner]
    start = f"{inner}/" if inner else ""
    below = [name.removeprefix(start) for name in names if name.startswith(start)]
    for folder in ("", "model/"):
        if folder + MANIFEST in below:
            return [start + name for name in _of_model_folder(below, folder)]
    if INDEX in below:
        return [start + name for name in _of_pipeline(below, read_json(start + INDEX), where)]
    if chosen := _of_part(below):
        return [start + name for name in chosen]
    raise UserError(f"{where} holds no model folder and no folder of diffusers{_hint(start, below)}.")


def _of_model_folder(names: Iterable[str], folder: str) -> list[str]:
    """config.json, the weights, bundled text encoders, and at last manifest.json."""
    own = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    found = ["config.json", "model.safetensors"]
    found += [name for part in _folders(own) if _BUNDLED.match(f"{part}/") for name in _files_of(own, part)]
    return [folder + name for name in (*found, MANIFEST)]


def _of_pipeline(names: Collection[str], index: Mapping[str, Any], where: str) -> list[str]:
    """The files of the parts that the index of a pipeline names, and at last the index."""
    found: list[str] = []
    for part, kind in index.items():
        named = isinstance(kind, list) and len(kind) == 2 and all(isinstance(word, str) for word in kind)
        if part.startswith("_") or part in _UNREAD or not named:
            continue
        if not (own := _files_of(names, part)):
            raise UserError(f"{where} isn't whole: {INDEX} names {part}, of which there is no file.")
        found += own
    return [*found, INDEX]


def _files_of(names: Iterable[str], part: str) -> list[str]:
    """The files of one part of a model, in a folder of its own."""
    own = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
    own = [name for name in own if "/" not in name]
    plain = [name for name in own if PurePosixPath(name).suffix in _PLAIN and not name.endswith(".index.json")]
    return [f"{part}/{name}" for name in (*plain, *weights(own))]


def _of_part(names: Iterable[str]) -> list[str]:
    """The files of a part of diffusers, or of a LoRA, in the folder itself; the settings come last."""
    own = [name for name in names if "/" not in name]
    found = [name for name in own if name in _ADAPTERS] or weights(own) or [name for name in own if name == _PICKLED]
    settings = ("config.json", "adapter_config.json", "scheduler_config.json")
    return [*found, *(name for name in own if name in settings)] if found else []


def weights(names: Iterable[str]) -> list[str]:
    """The files of weights that are read of a folder's files: one, or several with their index.

    Averaged weights come first, then plain names before variants (.fp16), safetensors before pickled files, and one
    file before several, as the readers have it.
    """
    copies: dict[tuple[bool, bool, bool, bool, str], list[str]] = {}
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name):
            variant = match["variant"] or match["second"] or match["third"] or ""
            in_pieces = bool(match["piece"] or match["index"])
            rank = ("non_ema" in variant, bool(variant), match["ending"] != ".safetensors", in_pieces)
            copies.setdefault((*rank, match["stem"] + variant), []).append(name)
    return copies[min(copies)] if copies else []


def _folders(names: Iterable[str]) -> list[str]:
    return sorted({name.split("/")[0] for name in names if "/" in name})


def _settings_beside(names: Collection[str], file: str) -> list[str]:
    """The config beside a single-file checkpoint, where its reader looks for it."""
    beside = (PurePosixPath(file).with_suffix(ending).as_posix() for ending in (".yaml", ".yml"))
    return [name for name in beside if name in names and name != file]


def _hint(start: str, names: Iterable[str]) -> str:
    """What the user may name instead: the files of weights, or the folders."""
    files = [start + name for name in names if name.endswith((".safetensors", ".ckpt"))]
    folders = [start + name.rsplit("/", 1)[0] for name in names if name.endswith(("/config.json", f"/{INDEX}"))]
    found = [*dict.fromkeys(folders), *files]
    return f": name what you mean in it, such as {', '.join(found[:4])}" if found else ""
