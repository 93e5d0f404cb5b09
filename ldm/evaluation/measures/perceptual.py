"""SSIM and LPIPS of reconstructions, by torchmetrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.common.errors import UserError, did_you_mean
from ldm.training.vae_losses import BACKBONES

LEAST_SIDE = 64  # below it the backbones' pooling leaves nothing
Distance = Callable[[Tensor, Tensor], Tensor]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The structural similarity of each pair (B, C, H, W) in [-1, 1], (B,) (Wang et al. 2004), with a Gaussian window
    of 11 pixels, or a flat one of what fits in the image."""
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    side = min(11, *(size if size % 2 else size - 1 for size in a.shape[2:]))
    options: dict[str, Any] = {"gaussian_kernel": side == 11, "kernel_size": side, "reduction": "none"}
    value = similarity(a, b, data_range=(-1.0, 1.0), **options)
    return value[0] if isinstance(value, tuple) else value


def open_lpips(choice: str, device: str = "cpu") -> tuple[Distance | None, str]:
    """LPIPS (Zhang et al. 2018) as a function of two batches in [-1, 1] to (B,), or None; and a note for the report.

    `auto` takes AlexNet if its weights lie in torch's cache, and downloads nothing.
    """
    if choice == "off":
        return None, "not asked for"
    if choice not in ("auto", *BACKBONES):
        raise UserError(f"lpips={choice} is unknown.{did_you_mean(choice, ('auto', 'off', *BACKBONES))}")
    net = "alex" if choice == "auto" else choice
    kept = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]
    if choice == "auto" and not kept.is_file():
        return None, f"not measured: {kept.name} isn't in torch's cache (lpips={net} downloads it)"
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net).to(device)  # type: ignore[arg-type]
    except Exception as error:  # urllib's, the file's own
        raise UserError(
            f"the LPIPS weights can't be obtained ({type(error).__name__}: {error}). Put torchvision's {kept.name} "
            f"into {kept.parent}, or use lpips=off."
        ) from None

    @torch.inference_mode()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        """LPIPS (B,) between images `a` and `b` (B, C, H, W) in [-1, 1], enlarged to the size that the network
        needs."""
        return metric.net(_enlarged(a), _enlarged(b)).flatten()

    return distance, f"{net}; images below {LEAST_SIDE} pixels are enlarged to that size"


def _enlarged(images: Tensor) -> Tensor:
    x = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    scale = LEAST_SIDE / min(x.shape[2:])
    return F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True) if scale > 1 else x
