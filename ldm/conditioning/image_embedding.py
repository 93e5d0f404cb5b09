"""The embedding of an image by a frozen encoder as a condition, for images like it rather than copies of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.common.errors import UserError
from ldm.common.registry import register
from ldm.conditioning import image_encoders as vision
from ldm.conditioning.part import EncodeFn, Part
from ldm.networks import Cond


@register
class ImageEmbedding(Part):
    """The embedding of an image, added to the time embedding (Ramesh et al. 2022, DALL-E 2's decoder; SD unCLIP).

    `encoder` is the folder of a vision encoder of transformers (CLIP, SigLIP, DINOv2, ViT, ResNet), or the name of a
    model of torchvision with `weights`, the file of its state dict. It reads images of `image_size` x `image_size`
    pixels, normalised by `mean` and `std` (by default ImageNet's). With `tokens`, its states at all positions are also
    attended to. The encoder isn't part of the model: a model folder records its path and hash, and it is read when it
    is first used. `width`, `places` (the number of positions) and `sha256` are derived from the encoder. The null
    condition is an embedding of zeros.
    """

    column = "embedding"
    sources = ("image",)

    def __init__(
        self,
        encoder: str,
        weights: str | None = None,
        image_size: int = 224,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        tokens: bool = False,
        dim: int = 128,
        width: int | None = None,
        places: int | None = None,
        sha256: str | None = None,
        drop_prob: float = 0.1,
    ):
        super().__init__(drop_prob)
        self.encoder, self.weights, self.image_size, self.sha256 = encoder, weights, image_size, sha256
        self.mean, self.std = tuple(mean or vision.IMAGENET[0]), tuple(std or vision.IMAGENET[1])
        self._held: list[Any] = []  # (encoder, states); in a list, since a frozen encoder isn't part of the model
        if width is None or places is None:
            width, places = self._shape()
        if tokens and not places:
            raise UserError(f"conditioner: {encoder} gives no states for positions in the image: use tokens=false.")
        self.width, self.places = width, places if tokens else 0
        self.vector_dim, self.token_dim = dim, dim if tokens else None
        self.norm = nn.LayerNorm(width)
        self.vector = nn.Linear(width, dim)
        self.token = nn.Linear(width, dim) if tokens else None

    @classmethod
    def derive(cls, table: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Width, number of positions and hash of the encoder. Raises UserError if it isn't there."""
        encoder, weights = str(options.get("encoder", "")), options.get("weights")
        vision.check_encoder(encoder, weights)
        width, places = cls(**{key: value for key, value in options.items() if key not in ("class", "tokens")})._shape()
        return {"width": width, "places": places, "sha256": vision.hash_of_encoder(encoder, weights)}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The image to embed."""
        return ("embed_image",)

    def prepare(self, batch: Mapping[str, Any], encode: EncodeFn, seed: int) -> Tensor:
        """The embeddings (B, 1 + places, width) of the images that the user passed, or of the batch's own."""
        return self.embed(batch["embed_image"] if "embed_image" in batch else batch["image"])

    def move_to(self, device: torch.device) -> None:
        """Reads the encoder and moves it to `device`."""
        self._load()[0].to(device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> the pooled state and those of the positions, (B, 1 + places, width)."""
        model, states = self._load()
        model.to(images.device)
        return states(vision.normalised(images, self.image_size, self.mean, self.std))[:, : 1 + self.places]

    def example(self, batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The batch's own images."""
        return {"embed_image": batch["image"]}

    def parse(self, values: Any) -> Tensor:
        """Images (C, H, W) in [-1, 1] -> (B, C, H, W) float32."""
        return torch.stack([torch.as_tensor(value).float() for value in values])

    def null_values(self, n: int) -> Tensor:
        """Zeros (n, 1 + places, width)."""
        return torch.zeros(n, 1 + self.places, self.width)

    def forward(self, values: Tensor, drop: Tensor | None = None) -> Cond:
        """Embeddings (B, 1 + places, width) -> `vector` (B, D), and `tokens` (B, places, D) if they are attended to."""
        if drop is not None:
            values = values.masked_fill(drop[:, None, None], 0)
        states = self.norm(values)  # (B, 1 + L, D)
        vector = self.vector(states[:, 0])
        if self.token is None:
            return Cond(vector=vector)
        tokens = self.token(states[:, 1:])
        return Cond(vector=vector, tokens=tokens, mask=tokens.new_ones(tokens.shape[:2], dtype=torch.bool))

    def locate(self, folder: Path) -> None:
        """Replaces relative paths of the encoder by those of files in the model's `folder`, if they are there."""
        for name in ("encoder", "weights"):
            path = getattr(self, name)
            if path and not Path(path).is_absolute() and (folder / path).exists():
                setattr(self, name, str(folder / path))

    def _shape(self) -> tuple[int, int]:
        """Width and number of positions, measured with a grey image."""
        _, states = self._load()
        grey = torch.zeros(1, 3, self.image_size, self.image_size, device="cpu")
        with torch.no_grad():
            shape = states(grey).shape
        return shape[2], shape[1] - 1

    def _load(self) -> tuple[nn.Module, vision.States]:
        if not self._held:
            vision.check_encoder(self.encoder, self.weights)
            if self.sha256 and vision.hash_of_encoder(self.encoder, self.weights) != self.sha256:
                raise UserError(
                    f"the vision encoder at {self.weights or self.encoder} isn't the one that the model was trained "
                    "with, since its SHA-256 differs: restore the original."
                )
            with torch.device("cpu"):
                self._held = list(vision.load_states(self.encoder, self.weights))
        return self._held[0], self._held[1]
