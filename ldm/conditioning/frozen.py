"""A frozen text encoder of Hugging Face's transformers: CLIP, T5, BERT and their like, one state a token.

Its weights belong to no model of ours: a model folder names it (path or name, and a hash), and `bundle` copies it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.parts import Part
from ldm.errors import UserError
from ldm.networks import Cond
from ldm.registry import register

log = logging.getLogger("ldm")
_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


@register
class FrozenText(Part):
    """Captions through a frozen encoder at `path`: a local folder, or a name that transformers knows.

    `tokenizer` is its tokenizer's folder, if that isn't `path` itself or the `tokenizer` beside it. Captions are padded
    to `length` tokens and nothing is masked, as Stable Diffusion does it; with `masked` padding is never seen, and
    batches are as long as their longest caption. `pooled` adds the encoder's pooled state to the time embedding. `dim`
    and `sha256` are read off the encoder when they aren't given; an encoder of another hash is refused.

    The encoder is read when it is first used, so that a model without prompts never loads it.
    """

    column = "text"

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        length: int | None = None,
        masked: bool = True,
        pooled: bool = False,
        dim: int | None = None,
        sha256: str | None = None,
        drop_prob: float = 0.1,
    ):
        super().__init__(drop_prob)
        self.path, self.tokenizer_path, self.length = path, tokenizer, length
        self.masked, self.pooled, self.sha256 = masked, pooled, sha256
        self.token_dim = dim or _width(path)
        self.vector_dim = self.token_dim if pooled else None
        self._held: list[Any] = []  # (tokenizer, encoder); in a list, since a frozen encoder is no part of the model
        # says where the model is; a model that is built without memory (device "meta") must still have it
        self.register_buffer("_place", torch.zeros(0, device="cpu"), persistent=False)

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        path = str(options.get("path", ""))
        if not path:
            raise UserError("conditioner: FrozenText needs path=, the folder of a text encoder of transformers.")
        derived: dict[str, Any] = {"path": path}
        return derived | ({"dim": _width(path), "sha256": fingerprint(path)} if Path(path).is_dir() else {})

    def null_values(self, n: int) -> list[str]:
        return [""] * n

    def parse(self, values: Any) -> list[str]:
        return [str(v) for v in values]

    def hold(self, tokenizer: Any, encoder: Any) -> None:
        """Takes an encoder that is in memory already in place of the one at `path`."""
        self._held = [tokenizer, encoder.eval().requires_grad_(False)]

    @property
    def encoder(self) -> Any:
        self._load()
        return self._held[1]

    @property
    def tokenizer(self) -> Any:
        self._load()
        return self._held[0]

    @torch.no_grad()
    def forward(self, values: list[str], drop: Tensor | None = None) -> Cond:
        if drop is not None:
            values = ["" if d else v for v, d in zip(values, drop.tolist(), strict=True)]
        place: torch.device = self._place.device
        encoder = self.encoder.to(place)
        batch = self._tokens(values)
        ids, mask = batch["input_ids"].to(place), batch["attention_mask"].to(place)  # (B, L)
        output = encoder(input_ids=ids, attention_mask=mask if self.masked else None)
        keep = mask.bool() if self.masked else None
        return Cond(vector=self._pool(output, mask), tokens=output.last_hidden_state.float(), mask=keep)

    def _tokens(self, values: list[str]) -> Mapping[str, Tensor]:
        tokenizer = self.tokenizer
        limit = self.length or min(tokenizer.model_max_length, 512)
        for caption, ids in zip(values, tokenizer(values)["input_ids"], strict=True):
            if len(ids) > limit:
                log.warning("caption cut from %d to %d tokens: %s", len(ids), limit, caption[:80])
        padding = "longest" if self.masked else "max_length"
        return tokenizer(values, padding=padding, max_length=limit, truncation=True, return_tensors="pt")

    def _pool(self, output: Any, mask: Tensor) -> Tensor | None:
        if not self.pooled:
            return None
        if getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.float()
        states = output.last_hidden_state * mask[..., None]
        return (states.sum(1) / mask.sum(1, keepdim=True)).float()  # (B, D)

    def _load(self) -> None:
        if self._held:
            return
        if self.sha256 and Path(self.path).is_dir() and fingerprint(self.path) != self.sha256:
            raise UserError(f"the text encoder at {self.path} isn't the one that the model was trained with (SHA-256).")
        self.hold(load_tokenizer(self.tokenizer_path or _tokenizer_of(self.path)), load_encoder(self.path))

    def locate(self, folder: Path) -> None:
        """Finds an encoder that was bundled into the model's `folder`."""
        if not Path(self.path).is_absolute() and (folder / self.path).is_dir():
            self.path = str(folder / self.path)
            self.tokenizer_path = self.tokenizer_path and str(folder / self.tokenizer_path)
            self._remember(self.path, self.tokenizer_path)

    def bundle(self, folder: Path) -> None:
        """Copies encoder and tokenizer into a model's `folder`, and from now on names the copies."""
        write_encoder(self, folder / "text_encoder", folder / "tokenizer")
        self.sha256 = fingerprint(folder / "text_encoder")
        object.__setattr__(self, "_spec", self._spec | {"sha256": self.sha256, "dim": self.token_dim})
        self._remember("text_encoder", "tokenizer")

    def _remember(self, path: str, tokenizer: str | None) -> None:
        object.__setattr__(self, "_spec", self._spec | {"path": path, "tokenizer": tokenizer})

    _spec: dict[str, Any]
    _place: Tensor


def write_encoder(part: FrozenText, encoder: Path, tokenizer: Path) -> None:
    """Encoder and tokenizer of `part` as folders: the files themselves where there are any, else written anew."""
    source = Path(part.path)
    if source.is_dir():
        _copy(source, encoder, ("config.json", *_WEIGHTS, "*.index.json"))
        _copy(Path(part.tokenizer_path or _tokenizer_of(part.path)), tokenizer, _TOKENIZER)
    else:
        part.encoder.save_pretrained(encoder)
        part.tokenizer.save_pretrained(tokenizer)


def fingerprint(folder: str | Path) -> str:
    """SHA-256 over the config and the weights of an encoder's folder."""
    digest = hashlib.sha256()
    files = {f for pattern in ("config.json", *_WEIGHTS) for f in Path(folder).glob(pattern)}
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_encoder(path: str) -> Any:
    """The text encoder at `path`; of a two-sided model, the text side."""
    transformers = _transformers()
    try:
        kind = transformers.AutoConfig.from_pretrained(path).model_type
        special = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
        special |= {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
        encoder = getattr(transformers, special.get(kind, "AutoModel")).from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no text encoder at '{path}' ({_first_line(error)}); name its folder.") from None
    return encoder


def load_tokenizer(path: str) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no tokenizer at '{path}' ({_first_line(error)}); give tokenizer=FOLDER.") from None


def _tokenizer_of(path: str) -> str:
    folder = Path(path)
    own = any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))
    beside = folder.parent / "tokenizer"
    return str(beside) if folder.is_dir() and not own and beside.is_dir() else path


def _width(path: str) -> int:
    """How many numbers a state has."""
    file = Path(path) / "config.json"
    if file.is_file():
        config = json.loads(file.read_text())
        width = config.get("hidden_size") or config.get("d_model") or config.get("text_config", {}).get("hidden_size")
        if width:
            return int(width)
    raise UserError(f"there is no text encoder at '{path}' whose width can be read: name its folder, or give dim=.")


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in {f for pattern in patterns for f in source.glob(pattern) if f.is_file()}:
        if file.resolve() != (target / file.name).resolve():
            shutil.copy2(file, target / file.name)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("a Hugging Face text encoder needs transformers: pip install 'ldm[hf]'.") from None
    return transformers
