"""Replaces `auto` by sizes, a batch size and a learning rate in a run's config."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ldm.common.registry import lookup, parameters, register
from ldm.networks import Autoencoder
from ldm.training.auto.choose import (
    ENOUGH,
    ENOUGH_VAE,
    FEWEST,
    FEWEST_VAE,
    Budget,
    choose_batch,
    choose_network,
    choose_vae,
)
from ldm.training.auto.count import network_flops, vae_flops
from ldm.training.vae_losses import BACKBONES, NETS, has_weights

Say = Callable[[str], object]
_PRINT = partial(print, flush=True)

WEIGHTS_OF_LDM = {"perceptual": 1.0, "adversarial": 0.5}
# The sizes of vae=small, which also complete an autoencoder of which some sizes are given.
SMALL: dict[str, Any] = {
    "latent_channels": 8,
    "channels": 64,
    "multipliers": [1, 2],
    "blocks": 1,
    "stem": 2,
    "shortcut": True,
}


@register
class AutoVAE:
    """`vae=auto`: an `AutoencoderKL` of sizes that suit images, machine and time. Given sizes are kept."""

    def __init__(
        self,
        *,
        latent_channels: int | None = None,
        channels: Any = None,
        multipliers: Any = None,
        blocks: int | None = None,
        stem: int | None = None,
        attention: bool | None = None,
        shortcut: bool | None = None,
        groups: int | None = None,
    ):
        raise NotImplementedError("a placeholder: ldm.training.auto chooses the real network")


@register
class AutoNetwork:
    """`network=auto`: a `DiT` of a size that suits latents, machine and time.

    Given sizes are kept. An option that only the U-Net has, or a value for each level, selects the `UNet` with it.
    """

    def __init__(
        self,
        *,
        channels: Any = None,
        depth: Any = None,
        heads: Any = None,
        patch: int | None = None,
        mlp: int | None = None,
        multipliers: Any = None,
        blocks: int | None = None,
        attention: Any = None,
        scale_shift: bool | None = None,
        linear_projection: bool | None = None,
        vector_bias: bool | None = None,
        groups: int | None = None,
        dropout: float | None = None,
    ):
        raise NotImplementedError("a placeholder: ldm.training.auto chooses the real network")


def settle_vae(
    config: dict[str, Any],
    recorded: Mapping[str, Any],
    *,
    channels: int,
    size: tuple[int, int],
    images: int,
    say: Say = _PRINT,
) -> None:
    """Replaces `auto` by sizes in the config of stage one, and prints them with a forecast of the steps.

    `recorded` is the config of a run that is resumed, whose choices are kept; `channels` and `size` (height, width) are
    those of the images, `images` is the number of training images, and `say` takes what is to be printed.
    """
    budget, spec = Budget.of(config, images), config["vae"]
    given = {key: value for key, value in spec.items() if key != "class"}
    auto = spec.get("class") == AutoVAE.__name__
    if auto and "vae" in recorded:
        config["vae"] = {**recorded["vae"], **given}
    elif auto and given.keys() & {"channels", "multipliers", "blocks", "stem"}:
        config["vae"] = {"class": "AutoencoderKL", **SMALL, **given}
    elif auto:
        config["vae"] = {**choose_vae(channels, size, budget), **given}
        chosen = config["vae"]
        say(
            f"vae=auto: factor {_factor(chosen)} with {chosen['latent_channels']} latent channels, widths "
            f"{chosen['channels']} behind a stem of {chosen['stem']}; vae=small, vae=kl_f8 or any vae.X= for another"
        )
    flops = None
    if issubclass(lookup(config["vae"]["class"]), Autoencoder):
        flops = vae_flops(config["vae"], channels, size, decoder_only=config.get("train") == "decoder")
    _settle_batch_and_rate(config, recorded, budget, flops=flops, enough=ENOUGH_VAE, lr=2e-3 if auto else 1e-3)
    if flops and not recorded:
        fewest = 0 if config.get("base") else FEWEST_VAE  # a base reconstructs from the first step
        _forecast(budget, flops, config["batch_size"], fewest=fewest, say=say)


def settle_loss(
    config: dict[str, Any], recorded: Mapping[str, Any], *, channels: int, side: int, say: Say = _PRINT
) -> None:
    """Numbers in place of `loss.perceptual=auto` and `loss.adversarial=auto`: LDM's weights of LPIPS and critic if
    LPIPS's network is in torch's cache and takes images with that many channels and that shorter side, else 0."""
    terms = config["loss"]
    names = [name for name in ("perceptual", "adversarial") if terms.get(name) == "auto"]
    if not names:
        return
    if "loss" in recorded:
        config["loss"] = terms | {name: recorded["loss"].get(name, 0.0) for name in names}
        return
    net = terms.get("perceptual_net", "vgg")
    if has_weights(net) and channels in (1, 3) and side >= NETS[net]:
        config["loss"] = terms | {name: WEIGHTS_OF_LDM[name] for name in names}
        say(f"loss: LPIPS with {net}, whose weights are in torch's cache, and a critic")
        return
    config["loss"] = terms | dict.fromkeys(names, 0.0)
    say(
        f"loss: without LPIPS and critic, since {BACKBONES.get(net, net)} isn't in torch's cache or doesn't take these "
        "images; loss.perceptual=1 loss.adversarial=0.5 downloads it, and gives sharper images"
    )


def settle_network(
    config: dict[str, Any],
    recorded: Mapping[str, Any],
    *,
    latent_size: tuple[int, int],
    inputs: Mapping[str, Any],
    images: int,
    say: Say = _PRINT,
) -> None:
    """As `settle_vae`, for stage two. `inputs` are the arguments with which its network is built in addition to its
    options."""
    budget, spec = Budget.of(config, images), config["network"]
    given = {key: value for key, value in spec.items() if key != "class"}
    if spec.get("class") == AutoNetwork.__name__:
        if "network" in recorded:
            config["network"] = {**recorded["network"], **given}
        elif is_unet(given):
            config["network"] = {"class": "UNet", **given}
        else:
            chosen = config["network"] = {**choose_network(latent_size, inputs, budget), **given}
            tokens = math.prod(math.ceil(side / chosen["patch"]) for side in latent_size)
            say(
                f"network=auto: a Transformer of {chosen['depth']} blocks of width {chosen['channels']} on {tokens} "
                f"tokens (patch {chosen['patch']}); network=unet, network=dit or any network.X= for another"
            )
    network = config["network"]
    lr = min(4e-3, 3e-3 * 192 / network.get("channels", 192)) if network["class"] == "DiT" else 1e-3
    flops = network_flops(network, latent_size, inputs) if network["class"] in ("DiT", "UNet") else None
    _settle_batch_and_rate(config, recorded, budget, flops=flops, enough=ENOUGH, lr=lr)
    if flops and not recorded:
        _forecast(budget, flops, config["batch_size"], fewest=FEWEST, say=say)


def is_unet(options: Mapping[str, Any]) -> bool:
    """Whether options select the U-Net: by one that only the U-Net has, or by a value for each level."""
    of_unet = parameters("UNet").keys() - parameters("DiT").keys()
    return any(key in of_unet or isinstance(value, (list, tuple)) for key, value in options.items())


def _settle_batch_and_rate(
    config: dict[str, Any],
    recorded: Mapping[str, Any],
    budget: Budget,
    *,
    flops: float | None,
    enough: int,
    lr: float,
) -> None:
    """Replaces batch_size=auto and optimizer.lr=auto by numbers.

    `flops` are the operations per image, None for a class of the user's own; `enough` is the number of steps that the
    batch size should leave.
    """
    optimizer = config["optimizer"]
    if config["batch_size"] == "auto":
        config["batch_size"] = recorded.get("batch_size") or choose_batch(flops or 0, budget, enough)
    if optimizer["lr"] == "auto":
        config["optimizer"] = optimizer | {"lr": recorded.get("optimizer", {}).get("lr") or round(lr, 6)}


def _forecast(budget: Budget, flops_of_image: float, batch: int, *, fewest: int, say: Say) -> None:
    """Prints how many steps fit into the time limit, or how long the given number of steps takes."""
    flops = flops_of_image * batch
    steps, machine = (
        budget.steps_in_time(flops),
        (f"{budget.speed / 1e9:.0f} GFLOP/s, which such machines reach in training"),
    )
    minutes = (budget.steps or 0) * flops / budget.speed / 60
    if steps is None:
        if minutes >= 2:
            say(f"{budget.steps} steps of {batch} will take about {minutes:.0f} minutes ({machine})")
        return
    say(f"about {steps} steps of {batch} will fit into the training time ({machine})")
    if steps < fewest:
        longer = math.ceil((budget.seconds or 0) * fewest / max(steps, 1) / 60)
        say(
            f"warning: fewer than {fewest} steps rarely give more than blurred shapes: allow about {longer} "
            "minutes with trainer.max_time, or use smaller images (data.size=) or a smaller network"
        )


def _factor(spec: Mapping[str, Any]) -> int:
    return int(spec["stem"]) * 2 ** (len(spec["channels"]) - 1)
