"""The optional terms of stage one's loss: perceptual, adversarial and equivariance. `vae_task` adds the KL term."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.common.errors import UserError, did_you_mean
from ldm.common.randomness import uniform
from ldm.networks.discriminator import PatchDiscriminator, adaptive_weight, hinge, smallest_side
from ldm.training.loss_mask import mean_counted, mean_of_places

PIXEL = ("mse", "l1")
NETS = {"vgg": 16, "alex": 31, "squeeze": 17}  # the networks of LPIPS, with the smallest side of images they take


# torchvision's files of their weights; those of LPIPS itself come with torchmetrics
BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


class VAELoss(nn.Module):
    """The loss of a reconstruction: `pixel` error, plus `perceptual` times LPIPS, plus an `adversarial` term.

    `adversarial` w (0: none; LDM has 0.5) is w times `adaptive_weight` times -D(decoded), from step `adversarial_start`
    on, against a PatchDiscriminator of `critic_channels` and `critic_layers`. `equivariance` is a probability (0: off;
    EQ-VAE has 0.5): see `transformed`. All terms are means over pixel values, as the weight of the KL term expects.
    """

    def __init__(
        self,
        in_channels: int,
        side: int,
        *,
        pixel: str = "mse",
        perceptual: float = 0.0,
        perceptual_net: str = "vgg",
        adversarial: float = 0.0,
        adversarial_start: int = 1000,
        critic_channels: int = 64,
        critic_layers: int = 3,
        equivariance: float = 0.0,
        equivariance_turns: bool = True,
    ):
        super().__init__()
        if pixel not in PIXEL:
            raise UserError(f"loss.pixel={pixel} isn't known.{did_you_mean(pixel, PIXEL)}")
        if min(perceptual, adversarial) < 0 or not 0 <= equivariance <= 1:
            raise UserError("loss: perceptual and adversarial are weights of 0 or above, equivariance a probability.")
        self.pixel, self.perceptual, self.adversarial = pixel, perceptual, adversarial
        self.start, self.equivariance, self.turns = adversarial_start, equivariance, equivariance_turns
        if adversarial and side < smallest_side(critic_layers):
            raise UserError(
                f"loss.critic_layers={critic_layers} needs images of {smallest_side(critic_layers)} pixels, but these "
                f"have {side}: give fewer layers."
            )
        # Smaller images have no such term; `transformed` makes batches smaller.
        self.smallest_for_critic, self.smallest_for_lpips = smallest_side(critic_layers), NETS.get(perceptual_net, 0)
        self.critic = PatchDiscriminator(in_channels, critic_channels, critic_layers) if adversarial else None
        self._lpips = [lpips(perceptual_net, in_channels, side)] if perceptual else []  # a list: not in checkpoints

    def move_to(self, device: torch.device) -> None:
        """Moves LPIPS, which is no part of this module's state, to the device."""
        for net in self._lpips:
            net.to(device)

    def reconstruction(
        self, decoded: Tensor, images: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pixel and perceptual part of the loss, and its figures to log. `places` (B, 1, H, W) are weights of the
        pixels; the perceptual part sees `shown`."""
        error = (decoded - images).square() if self.pixel == "mse" else (decoded - images).abs()
        loss, logged = mean_of_places(error, places), {}
        if self._lpips and min(images.shape[2:]) >= self.smallest_for_lpips:
            each = self._lpips[0](_rgb(shown(decoded, images, places)), _rgb(images)).float()
            logged["lpips"] = mean_counted(each.flatten(), places)
            loss = loss + self.perceptual * logged["lpips"]
        return loss, logged

    def against_critic(
        self, reconstruction: Tensor, decoded: Tensor, images: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's adversarial term plus the critic's own loss, to be added to the loss in training; and figures.

        The decoder sees a critic whose weights are constants, and the critic decoded images that are constants: one
        backward pass gives each its own gradient, and one optimizer serves both.
        """
        assert self.critic is not None
        if step < self.start or min(images.shape[2:]) < self.smallest_for_critic:
            nothing = sum((p.sum() for p in self.critic.parameters()), torch.zeros((), device=images.device))
            return 0.0 * nothing, {}  # in the graph: the ranks of a distributed run wait for the same gradients
        constants = {name: p.detach() for name, p in self.critic.named_parameters()}
        verdict = -torch.func.functional_call(self.critic, constants, (decoded,)).float().mean()
        weight = self.adversarial * adaptive_weight(reconstruction, verdict, last_layer)
        critic = hinge(self.critic(images).float(), self.critic(decoded.detach()).float())
        return weight * verdict + critic, {"adversarial": verdict, "adversarial_weight": weight, "critic": critic}

    def transformed(self, latents: Tensor, images: Tensor, factor: int, seed: int, start: int) -> tuple[Tensor, Tensor]:
        """Latents and images, with probability `equivariance` both rotated by the same quarter turns and scaled down.

        EQ-VAE (Kouzelis et al. 2025, arXiv 2502.09509, eq. 5): the decoder learns tau(x) from tau(z), so the encoder
        learns latents that allow it, which are smoother. The scale is one of 8/32 to 31/32. A batch has one
        transformation, which `start` fixes, the position of its first sample on all ranks together.
        """
        if not self.equivariance:
            return latents, images
        coin, scale, turn = uniform(seed, "equivariance", torch.tensor([start]), (3,))[0].tolist()
        if coin >= self.equivariance:
            return latents, images
        h, w = latents.shape[2:]
        share = (8 + int(24 * scale)) / 32
        size = max(1, round(h * share)), max(1, round(w * share))
        latents, images = _resized(latents, size), _resized(images, (size[0] * factor, size[1] * factor))
        turns = int(4 * turn) if h == w else 2 * int(2 * turn)
        if not self.turns or not turns:
            return latents, images
        return torch.rot90(latents, turns, (2, 3)), torch.rot90(images, turns, (2, 3))


def shown(decoded: Tensor, images: Tensor, places: Tensor | None) -> Tensor:
    """`decoded` for networks that judge whole images: pixels that don't count are replaced by those of the original
    image, so that their gradient is exactly 0."""
    return decoded if places is None else images + places * (decoded - images)


def has_weights(net: str) -> bool:
    """Whether the weights of LPIPS's network `net` are in torch's cache."""
    return net in BACKBONES and (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]).is_file()


def lpips(net: str, channels: int, side: int) -> nn.Module:
    """LPIPS (Zhang et al. 2018) on the features of `net`: two batches (B, 3, H, W) in [-1, 1] -> (B, 1, 1, 1).

    Its own weights come with torchmetrics. The features' weights come from torchvision, which downloads them once.
    Raises UserError where they can't be loaded.
    """
    if net not in NETS:
        raise UserError(f"loss.perceptual_net={net} isn't known.{did_you_mean(net, NETS)}")
    if channels not in (1, 3) or side < NETS[net]:
        raise UserError(
            f"LPIPS with {net} takes grey or RGB images of {NETS[net]} pixels or more, but these have "
            f"{channels} channels "
            f"and {side} pixels: use loss.perceptual=0."
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        metric: Any = LearnedPerceptualImagePatchSimilarity(net_type=net)  # type: ignore[arg-type]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"LPIPS needs torchvision's ImageNet weights of {net}, which can't be loaded ({error}). Put the file into "
            f"{torch.hub.get_dir()}/checkpoints, or use loss.perceptual=0."
        ) from None
    return metric.net.eval().requires_grad_(False)


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
