"""The networks in whose features published distances are measured, with all of their protocols: Inception, DINOv2."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.common.devices import send
from ldm.common.errors import UserError, did_you_mean
from ldm.conditioning.image_encoders import IMAGENET
from ldm.conditioning.text.encoders import fingerprint
from ldm.data.storage.table import hash_of
from ldm.evaluation.measures.features import weights_hash
from ldm.evaluation.measures.inception import FEATURES, read_weights
from ldm.evaluation.published.images import Images
from ldm.evaluation.published.resizing import RESIZINGS
from ldm.evaluation.published.statistics import Moments, Statistics, read_statistics

DINO_SIDE = 224
SHOW_PROGRESS = 2000  # images


@dataclass(frozen=True)
class Embedder:
    """`resize` takes RGB images (B, 3, H, W) float of 0..255 to inputs of `network`, which gives one tensor of features
    (B, D) for each of the distances called `names`. `width` is D of the first. `protocol` says it all in words."""

    names: tuple[str, ...]
    width: int
    resize: Callable[[Tensor], Tensor]
    network: Callable[[Tensor], tuple[Tensor, ...]]
    protocol: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def key(self) -> str:
        """What has to be equal for statistics to be comparable: weights and resizing."""
        return f"{self.protocol['weights']} {self.protocol['resizing']}"

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The features of a batch of images (3, H, W) uint8; images of several sizes are resized one by one."""
        alike = len({image.shape for image in images}) == 1
        stacks = [torch.stack(list(images))] if alike else [image[None] for image in images]
        with in_float32():
            return self.network(torch.cat([self.resize(send(stack, self.device).float()) for stack in stacks]))

    def statistics(self, images: Images, batch_size: int, cache: Path | None = None) -> Statistics:
        """The statistics of all images, from `cache` if they were computed before."""
        kept = cache / "statistics" / f"{hash_of(self.key, images.key)}.npz" if cache and images.key else None
        if kept and kept.is_file():
            return read_statistics(kept)
        moments = [Moments() for _ in self.names]
        bar = tqdm(desc=images.what, total=images.count, disable=images.count < SHOW_PROGRESS, mininterval=1)
        with bar:
            for batch in images.batches(batch_size):
                for one, features in zip(moments, self(batch), strict=True):
                    one.add(features)
                bar.update(len(batch))
        found = Statistics(tuple(one.done() for one in moments), images.count, self.key, images.what)
        if kept:
            found.save(kept)
        return found


@contextmanager
def in_float32() -> Iterator[None]:
    """Products and convolutions in full float32 on a GPU too, which may otherwise drop 13 bits of the mantissa."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def inception(path: Path, resizing: str = "clean", device: str = "cpu") -> Embedder:
    """Inception by a file of weights: pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or torch-fidelity's. Gives
    FID and sFID."""
    if resizing not in RESIZINGS:
        raise UserError(f"resizing={resizing} is unknown.{did_you_mean(resizing, tuple(RESIZINGS))}")
    network = read_weights(path)
    chosen = RESIZINGS[resizing]
    protocol = {
        "features": f"Inception ({FEATURES} pooled features; sFID: 2,023 of mixed_6)",
        "weights": weights_hash(network),
        "resizing": f"{resizing} ({chosen.note})",
    }
    return Embedder(("FID", "sFID"), FEATURES, chosen.apply, network.to(device), protocol=protocol, device=device)


def dinov2(folder: str, device: str = "cpu") -> Embedder:
    """DINOv2's class token after its last normalization, by a folder of transformers (Stein et al. 2023)."""
    model = _transformers(folder)

    def features(images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, 224, 224) to (B, D)."""
        return (model(pixel_values=images).last_hidden_state[:, 0],)

    protocol = {
        "features": f"DINOv2, {model.config.hidden_size} of the class token, {model.config.num_hidden_layers} layers",
        "weights": fingerprint(folder)[:16],
        "resizing": f"Pillow's bicubic filter to {DINO_SIDE}x{DINO_SIDE}, in 8 bits",
    }
    model.to(device)
    return Embedder(("FD on DINOv2",), model.config.hidden_size, _for_dino, features, protocol=protocol, device=device)


def _for_dino(images: Tensor) -> Tensor:
    side = (DINO_SIDE, DINO_SIDE)
    if images.shape[2:] != side:
        images = F.interpolate(images, side, mode="bicubic", antialias=True).clamp(0, 255).round()
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in IMAGENET)
    return (images / 255 - mean) / std


def _transformers(folder: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("dinov2= needs transformers: pip install 'ldm[hf]'.") from None
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"dinov2={folder}: there is no such folder; name one with DINOv2's config.json and weights.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if not config.model_type.startswith("dinov2"):
            raise UserError(f"dinov2={folder} holds a model of kind {config.model_type}; name a folder of DINOv2.")
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:160]
        raise UserError(f"dinov2={folder} can't be read ({first}); fetch the folder again.") from None
    return model.eval().requires_grad_(False)
