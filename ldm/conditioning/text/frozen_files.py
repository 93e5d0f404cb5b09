"""The files of a frozen text encoder: verified before they are read, copied into a model folder, found in one."""

from pathlib import Path
from typing import Any

from ldm.common.errors import UserError
from ldm.conditioning.text.encoders import fingerprint, folder_of, tokenizer_of, write_encoder


class FrozenFiles:
    """The part of `FrozenText` that knows where encoder and tokenizer lie."""

    path: str
    tokenizer_path: str | None
    sha256: str | None
    suffix: str
    token_dim: int | None
    vector_dim: int | None
    projected: bool
    _spec: dict[str, Any]

    def locate(self, folder: Path) -> None:
        """Replaces relative paths by those of an encoder that was bundled into the model's `folder`."""
        if not Path(self.path).is_absolute() and (folder / self.path).is_dir():
            self.path = str(folder / self.path)
            tokenizer = self.tokenizer_path and folder / self.tokenizer_path
            self.tokenizer_path = str(tokenizer) if tokenizer and tokenizer.is_dir() else self.tokenizer_path
            self._record_paths(self.path, self.tokenizer_path)

    def bundle(self, folder: Path) -> None:
        """Copies encoder and tokenizer into a model's `folder`, and records the copies' paths in the spec."""
        own, tokenizer = f"text_encoder{self.suffix}", f"tokenizer{self.suffix}"
        copy = folder / own
        if not self.sha256 or fingerprint(copy) != self.sha256:
            write_encoder(self, copy, folder / tokenizer)
            self.sha256 = fingerprint(copy)
        dims = {"dim": self.token_dim} | ({"pooled_dim": self.vector_dim} if self.projected else {})
        object.__setattr__(self, "_spec", self._spec | {"sha256": self.sha256, **dims})
        self._record_paths(own, "byt5" if self.tokenizer_path == "byt5" else tokenizer)

    def _record_paths(self, path: str, tokenizer: str | None) -> None:
        object.__setattr__(self, "_spec", self._spec | {"path": path, "tokenizer": tokenizer})

    def _tokenizer_folder(self) -> str:
        return self.tokenizer_path or tokenizer_of(self.path)

    def _check_hash(self) -> bool:
        """Whether the encoder's folder exists. Raises UserError if its hash differs from the recorded one."""
        folder = folder_of(self.path)
        if self.sha256 and folder and fingerprint(folder) != self.sha256:
            raise UserError(
                f"the text encoder at {self.path} isn't the one that the model was trained with, since its SHA-256 "
                "differs: restore the original."
            )
        return folder is not None
