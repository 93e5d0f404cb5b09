"""Text encoders of Hugging Face's transformers: their folders, fingerprints, loading and saving."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.common.errors import UserError
from ldm.conditioning.text.clip_names import canonical
from ldm.conditioning.text.loaded_weights import READING, check_loaded, check_positions

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
_TEXT_SIDE = {  # the class of the text encoder in models that have another part too
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "siglip": "SiglipTextModel",
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CLIP_KINDS = ("clip", "clip_text_model")


def folder_of(path: str) -> Path | None:
    """The folder of the encoder `path`: itself, or that of the model of this name in the hub's cache; None if neither
    is there."""
    if Path(path).is_dir():
        return Path(path)
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(path, "config.json")
    except ValueError:  # not a valid name on the hub
        return None
    folder = Path(found).parent if isinstance(found, str) else None
    whole = folder and any(next(folder.glob(pattern), None) for pattern in WEIGHTS)
    return folder if whole else None


def kind_of(path: str) -> str:
    """The kind of the encoder at `path` by its config, such as "clip"; "" if there is no config."""
    file = (folder_of(path) or Path(path)) / "config.json"
    return str(json.loads(file.read_text()).get("model_type", "")) if file.is_file() else ""


def fingerprint(folder: str | Path, patterns: tuple[str, ...] = ("config.json", *WEIGHTS)) -> str:
    """SHA-256 over the files in a folder that match `patterns`: by default an encoder's config and weights."""
    digest = hashlib.sha256()
    files = {f for pattern in patterns for f in Path(folder).glob(pattern) if f.is_file()}
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_encoder(path: str, projected: bool = False) -> Any:
    """The text encoder at `path`, also that of a model for text and images; if `projected`, CLIP's with its projection.

    Raises UserError if it isn't there, not complete or damaged.
    """
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        _refuse_quantised(config, path)
        check_activation(getattr(config, "hidden_act", "gelu"), path)
        _check_sizes(getattr(config, "text_config", config), path)
        kind = config.model_type
        if projected and kind not in CLIP_KINDS:
            raise UserError(f"the text encoder at '{path}' is a {kind}, which has no projection: leave projected out.")
        name = "CLIPTextModelWithProjection" if projected else _TEXT_SIDE.get(kind, "AutoModel")
        cls = getattr(transformers, name)
        variant = variant_of(Path(path))
        encoder, info = cls.from_pretrained(path, variant=variant, **READING)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no text encoder at '{path}' ({_first_line(error)}); name its folder.") from None
    except UserError:
        raise
    except Exception as error:  # of settings of a wrong kind, which each version of transformers reports in another way
        raise UserError(
            f"the text encoder at '{path}' can't be built from its config.json ({type(error).__name__}: "
            f"{_first_line(error)}): correct it, or download the encoder again."
        ) from None
    what = f"the text encoder at '{path}'"
    check_loaded(encoder, info, config, what)
    if folder := folder_of(path):
        check_positions(folder, variant, what, "vision_model.")
    return encoder


def variant_of(folder: Path) -> str | None:
    """The variant, such as fp16, if a folder has no other weights; None if it has plain ones, or none at all."""
    plain = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if any((folder / name).is_file() for name in plain):
        return None
    names = [file.name.removeprefix("model.") for file in sorted(folder.glob("model.*.safetensors"))]
    return re.split(r"[.-]", names[0])[0] if names else None


def _refuse_quantised(config: Any, path: str) -> None:
    """Raises UserError for an encoder that transformers would quantise while it is read, whatever its file holds."""
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"the config.json of the text encoder at '{path}' has quantization_config, which isn't supported: "
            "get the unquantised encoder."
        )


def check_activation(name: Any, path: str) -> None:
    """Raises UserError for a `hidden_act` that transformers doesn't know."""
    from transformers.activations import ACT2FN

    if not isinstance(name, str) or name not in ACT2FN:
        raise UserError(
            f"hidden_act is {str(name)[:40]!r} in the config of the text encoder at '{path}', which transformers "
            "doesn't know: correct it, or download the encoder again."
        )


def check_tokens(ids: torch.Tensor, encoder: Any, tokenizer: Any, path: str) -> None:
    """Raises UserError at a token (B, L) for which the encoder has no embedding: a word that was added to the tokenizer
    alone."""
    rows, largest = encoder.get_input_embeddings().num_embeddings, int(ids.max())
    if largest >= rows:
        raise UserError(
            f"the tokenizer's '{tokenizer.convert_ids_to_tokens(largest)}' is token {largest}, but the text encoder at "
            f"'{path}' has only {rows} embeddings: the word was added to the tokenizer alone. Use the encoder "
            "that was trained with that word, or leave the word out."
        )


def save_encoder(encoder: Any, folder: Path) -> None:
    """Writes a text encoder as transformers does, and CLIP's weights under the names that all tools know."""
    encoder.save_pretrained(folder)
    file = folder / "model.safetensors"
    if type(encoder).__name__.startswith("CLIPText") and file.is_file():
        from safetensors.torch import load_file, save_file

        save_file({canonical(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def load_tokenizer(path: str) -> Any:
    """The tokenizer at `path`, or ByT5's for "byt5", which needs no files. Raises UserError if it isn't there."""
    transformers = _transformers()
    if path == "byt5":
        return transformers.ByT5Tokenizer()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no tokenizer at '{path}' ({_first_line(error)}); give tokenizer=FOLDER.") from None
    except Exception as error:  # a damaged file: the tokenizers library raises plain Exception
        raise UserError(
            f"the tokenizer at '{path}' can't be read ({type(error).__name__}: {_first_line(error)}): download it "
            "again."
        ) from None
    _check_words(tokenizer, path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _check_sizes(config: Any, path: str) -> None:
    """Raises UserError for a size that isn't a whole number; not every version of transformers names it."""
    for key in _SIZES:
        if isinstance(value := getattr(config, key, None), (str, float, bool)):  # a few models give one by layer
            raise UserError(
                f"{key} is {str(value)[:40]!r} in the config of the text encoder at '{path}', not a whole number: "
                "correct it, or download the encoder again."
            )


def _check_words(tokenizer: Any, path: str) -> None:
    """Raises UserError for a tokenizer without words, which transformers builds of a folder that has its config alone:
    every word would be unknown. T5's has the mark of a word's begin even then."""
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(
            f"the tokenizer at '{path}' knows no words: its vocabulary (tokenizer.json, or vocab and merges) is "
            "missing or empty; download it again."
        )


def tokenizer_of(path: str) -> str:
    """The folder of the tokenizer for the encoder at `path`: the same one, or `tokenizer` beside it."""
    folder = Path(path)
    own = any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))
    beside = folder.parent / "tokenizer"
    return str(beside) if folder.is_dir() and not own and beside.is_dir() else path


def width_of(path: str, key: str = "hidden_size") -> int:
    """The width of a state, from the encoder's config; that of a projected state with the `key` "projection_dim"."""
    file = Path(path) / "config.json"
    if file.is_file():
        config = _read_config(file)
    elif not Path(path).exists():
        config = _config_of_name(path)
    else:
        config = {}
    text = config.get("text_config")
    other = config.get("d_model") if key == "hidden_size" else None
    width = config.get(key) or other or (text.get(key) if isinstance(text, Mapping) else None)
    if type(width) is not int or width < 1:
        raise UserError(f"there is no text encoder at '{path}' whose width can be read: name its folder, or give dim=.")
    return width


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} can't be read as JSON ({type(error).__name__}): download the text encoder again."
        ) from None
    return config if isinstance(config, dict) else {}


def write_encoder(part: Any, encoder: Path, tokenizer: Path) -> None:
    """Writes encoder and tokenizer of `part` to two folders, as copies of their files if there are any."""
    source = Path(part.path)
    if not source.is_dir():
        save_encoder(part.encoder, encoder)
        part.tokenizer.save_pretrained(tokenizer)
        return
    if variant_of(source):
        save_encoder(part.encoder, encoder)  # under the plain name that every reader looks for
    else:
        copy_files(source, encoder, ("config.json", *WEIGHTS, "*.index.json"))
    if part.tokenizer_path != "byt5":
        copy_files(Path(part.tokenizer_path or tokenizer_of(part.path)), tokenizer, TOKENIZER)


def copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copies the files of the folder `source` that match `patterns` to the folder `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for file in {f for pattern in patterns for f in source.glob(pattern) if f.is_file()}:
        if file.resolve() != (target / file.name).resolve():
            shutil.copy2(file, target / file.name)


def _config_of_name(name: str) -> dict[str, Any]:
    try:
        return _transformers().AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict()
    except (OSError, ValueError):
        return {}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("a Hugging Face text encoder needs transformers: pip install 'ldm[hf]'.") from None
    return transformers
