"""What `vae=auto`, `network=auto`, `batch_size=auto` and `optimizer.lr=auto` stand for.

Everything is arithmetic on two numbers: the operations of a training step, counted on the network itself, and those
that a machine of a kind does in a second of training. So all processes of a run choose alike, and the same command
chooses the same on the next machine of that kind. The run's config.yaml holds the choice, and resuming keeps it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm.common.devices import available
from ldm.common.registry import build, parameters, register
from ldm.networks import Cond
from ldm.training.runs.resume import limit_of, steps_of
from ldm.training.trainer.costs import peak_of
from ldm.training.trainer.speed import precision_of

# Operations a second in training, by measurement: two cores without AVX-512 reach 70e9 in the demo's Transformer; on a
# GPU three tenths of what its data sheet says, half of what good kernels reach on large matrices, since small networks
# wait for memory.
CPU_CORE = 35e9
SHARE_OF_PEAK = 0.3
OTHER_GPU = 5e12  # where the card isn't known, also on MPS

PREPARATION = 0.9  # the share of the time given that goes to steps: the rest loads, validates, samples and saves
ENOUGH = 1800  # steps of stage two below which a smaller network does better in the same time
FEWEST = 1500  # below it, samples are rarely more than noise or smears: said before the first step
ENOUGH_VAE = 400  # steps of stage one; its shortcut starts from the principal components, so it needs fewer
FEWEST_VAE = 150

# Transformers, from small to large: width, blocks, heads.
DIT_SIZES = ((128, 6, 4), (192, 6, 4), (256, 8, 4), (384, 12, 6), (512, 16, 8), (768, 24, 12))
# The most parameters worth having for so many images: larger networks learn small sets by heart.
LARGEST_BY_IMAGES = ((2_000, 256), (20_000, 384), (math.inf, 768))
MOST_TOKENS = {"cpu": 64, "gpu": 256}  # of a Transformer, where a larger patch can keep to it
MOST_PLACES = {"cpu": 256, "gpu": 1024}  # of a latent
LATENT_CHANNELS = {4: 8, 8: 16, 16: 32, 32: 64}  # of colour images, by the factor
SMALL: dict[str, Any] = {  # what vae=small is: the rest of a choice that is begun by hand
    **{"latent_channels": 8, "channels": 64, "multipliers": [1, 2], "blocks": 1, "stem": 2, "shortcut": True}
}
BATCHES = (64, 32, 16)


@register
class AutoVAE:
    """`vae=auto`: an `AutoencoderKL` of sizes that suit images, machine and time. What is given is taken as it is."""

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
        raise NotImplementedError("a stand-in: ldm.training.auto chooses what is built")


@register
class AutoNetwork:
    """`network=auto`: a `DiT` of a size that suits latents, machine and time. What is given is taken as it is; an
    option that is the U-Net's alone, or a value for each level, means the `UNet` with it."""

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
        raise NotImplementedError("a stand-in: ldm.training.auto chooses what is built")


@dataclass(frozen=True)
class Budget:
    """What a run may cost: a machine's operations a second in training, and the limits that the user gave."""

    speed: float
    kind: str  # cpu or gpu
    seconds: float | None = None
    steps: int | None = None
    images: int = 0  # in the training data

    @classmethod
    def of(cls, config: Mapping[str, Any], images: int) -> "Budget":
        options = config["trainer"]
        accelerator = options.get("accelerator") or "auto"
        device = available(accelerator)
        devices = options.get("devices")
        count = devices if isinstance(devices, int) and devices > 0 else 1
        speed = speed_of(device, str(precision_of(options.get("precision"), accelerator))) * count
        return cls(speed, "cpu" if device.type == "cpu" else "gpu", limit_of(config), steps_of(config), images)

    def steps_in_time(self, flops: float) -> int | None:
        """The steps of so many operations that fit into the time given; None where time isn't the limit."""
        return None if self.seconds is None else int(self.seconds * PREPARATION * self.speed / max(flops, 1))

    def affords(self, flops: float, steps: int) -> bool:
        fitting = self.steps_in_time(flops)
        return fitting is None or fitting >= steps


def speed_of(device: torch.device, precision: str) -> float:
    if device.type == "cpu":
        return CPU_CORE * torch.get_num_threads()
    peak = peak_of(device, precision)
    return OTHER_GPU if peak is None else SHARE_OF_PEAK * peak


# Counting ------------------------------------------------------------------------------------------------------------


def vae_flops(spec: Mapping[str, Any], channels: int, size: tuple[int, int], decoder_only: bool = False) -> float:
    """Operations of a training step of one image: three times those of encoding and decoding it, or where the decoder
    alone is trained once those of encoding."""
    with counted() as counter:
        vae = build(spec, "vae", in_channels=channels)
        latents = vae.encode(torch.empty(2, channels, *size)).mode()
        encoding = counter.get_total_flops()
        vae.decode(latents)
    return 1.5 * counter.get_total_flops() - (encoding if decoder_only else 0.0)


def network_flops(spec: Mapping[str, Any], places: tuple[int, int], given: Mapping[str, Any]) -> float:
    """Operations of a training step of one latent of `places` rows and columns: three times those of a forward pass.

    `given` is what the network is built with beside its spec; of a context, 24 tokens are counted. The blocks of a
    Transformer cost alike, so two of them tell what all do.
    """
    depth = spec.get("depth", 8)
    if spec["class"] == "DiT" and depth > 2:
        one, two = (network_flops({**spec, "depth": n}, places, given) for n in (1, 2))
        return one + (depth - 1) * (two - one)
    with counted() as counter:
        network = build(spec, "network", **given)
        network(torch.empty(2, given["in_channels"], *places), torch.empty(2), some_cond(given, places))
    return 1.5 * counter.get_total_flops()


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Counts operations on tensors that have shapes alone. Two images stand for one, since norms refuse a single value;
    the process's random numbers are left as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), FlopCounterMode(display=False) as counter:
        yield counter


def some_cond(given: Mapping[str, Any], places: tuple[int, int]) -> Cond:
    context, vector, concat = (given.get(key) for key in ("context_dim", "vector_dim", "concat_channels"))
    return Cond(
        vector=torch.empty(2, vector) if vector else None,
        tokens=torch.empty(2, 24, context) if context else None,
        concat=torch.empty(2, concat, *places) if concat else None,
    )


# Choosing ------------------------------------------------------------------------------------------------------------


def choose_vae(channels: int, size: tuple[int, int], budget: Budget) -> dict[str, Any]:
    """The largest autoencoder that makes enough steps in the time given; the smallest where none does."""
    factor = factor_of(size, MOST_PLACES[budget.kind])
    latent = LATENT_CHANNELS[factor] if channels > 2 else LATENT_CHANNELS[factor] // 2
    candidates = [
        {"class": "AutoencoderKL", "latent_channels": latent, "channels": widths, "stem": stem, "shortcut": True}
        for stem, widths in vae_sizes(factor, budget.kind)
    ]
    fitting = (spec for spec in candidates if budget.affords(BATCHES[-1] * vae_flops(spec, channels, size), ENOUGH_VAE))
    return next(fitting, candidates[-1])


def vae_sizes(factor: int, kind: str) -> Iterator[tuple[int, list[int]]]:
    """Stems and widths for a factor, from large to small. A stem makes a step cheap, so it is large on a CPU."""
    if kind == "gpu":
        yield factor // 4, [128, 256, 256]
    yield factor // 2, [64, 128]
    yield factor, [128]
    yield factor, [64]


def factor_of(size: tuple[int, int], most: int) -> int:
    """The least factor from 4 on that leaves at most `most` places, of those that divide both sides; where none of
    these does, 4, whose refusal then says what is wrong with the size."""
    dividing = [factor for factor in LATENT_CHANNELS if not any(side % factor for side in size)]
    fitting = (factor for factor in dividing if size[0] * size[1] <= most * factor**2)
    return next(fitting, dividing[-1] if dividing else 4)


def choose_network(places: tuple[int, int], given: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """The widest Transformer that makes enough steps in the time given, on as small patches as that allows; where none
    does, the narrowest on the largest."""
    patches = patches_of(places, MOST_TOKENS[budget.kind])
    for channels, depth, heads in dit_sizes(budget):
        for patch in patches:
            spec = {"class": "DiT", "patch": patch, "channels": channels, "depth": depth, "heads": heads}
            batch = BATCHES[-1] if channels <= 192 else BATCHES[-2]  # small batches only where time is short
            if budget.affords(batch * network_flops(spec, places, given), ENOUGH):
                return spec
    return spec


def patches_of(places: tuple[int, int], most: int) -> list[int]:
    """The least patch that leaves at most `most` tokens, and twice that where at least 4 x 4 tokens remain."""
    first = next((p for p in (1, 2, 4, 8) if math.ceil(places[0] / p) * math.ceil(places[1] / p) <= most), 16)
    return [first, 2 * first] if min(places) >= 8 * first else [first]


def dit_sizes(budget: Budget) -> list[tuple[int, int, int]]:
    """From large to small, at most as large as the number of images is worth."""
    most = next(width for images, width in LARGEST_BY_IMAGES if budget.images < images)
    if budget.seconds is None:  # nobody says how long it may take
        most = min(most, 192 if budget.kind == "cpu" else 384)
    return [size for size in reversed(DIT_SIZES) if size[0] <= most]


def choose_batch(flops: float, budget: Budget, enough: int) -> int:
    """The largest batch that leaves enough steps, given the operations of one image."""
    return next((batch for batch in BATCHES if budget.affords(batch * flops, enough)), BATCHES[-1])


# Filling in ----------------------------------------------------------------------------------------------------------


def settle_vae(
    config: dict[str, Any], recorded: Mapping[str, Any], channels: int, size: tuple[int, int], images: int
) -> None:
    """Puts sizes in the place of `auto` in the config of stage one, and says what they are and how far they come."""
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
        print(
            f"vae=auto: factor {_factor(chosen)} with {chosen['latent_channels']} latent channels, widths "
            f"{chosen['channels']} behind a stem of {chosen['stem']}; vae=small, vae=kl_f8 or any vae.X= for another",
            flush=True,
        )
    ours = config["vae"]["class"] == "AutoencoderKL"
    flops = vae_flops(config["vae"], channels, size, config.get("train") == "decoder") if ours else None
    wanted = (ENOUGH_VAE, 0 if config.get("base") else FEWEST_VAE)  # a base reconstructs from the first step on
    _settle_steps(config, recorded, flops, budget, wanted, 2e-3 if auto else 1e-3)


def settle_network(
    config: dict[str, Any],
    recorded: Mapping[str, Any],
    places: tuple[int, int],
    given: Mapping[str, Any],
    images: int,
) -> None:
    """The same for stage two; `given` is what its network is built with beside its options."""
    budget, spec = Budget.of(config, images), config["network"]
    own = {key: value for key, value in spec.items() if key != "class"}
    if spec.get("class") == AutoNetwork.__name__:
        if "network" in recorded:
            config["network"] = {**recorded["network"], **own}
        elif is_unet(own):
            config["network"] = {"class": "UNet", **own}
        else:
            chosen = config["network"] = {**choose_network(places, given, budget), **own}
            tokens = math.prod(math.ceil(side / chosen["patch"]) for side in places)
            print(
                f"network=auto: a Transformer of {chosen['depth']} blocks of width {chosen['channels']} on {tokens} "
                f"tokens (patch {chosen['patch']}); network=unet, network=dit or any network.X= for another",
                flush=True,
            )
    network = config["network"]
    is_dit = network["class"] == "DiT"
    lr = min(4e-3, 3e-3 * 192 / network.get("channels", 192)) if is_dit else 1e-3
    flops = network_flops(network, places, given) if network["class"] in ("DiT", "UNet") else None
    _settle_steps(config, recorded, flops, budget, (ENOUGH, FEWEST), lr)


def is_unet(own: Mapping[str, Any]) -> bool:
    """Whether options name the U-Net: by one that is its own, or by values for its levels."""
    alone = parameters("UNet").keys() - parameters("DiT").keys()
    return any(key in alone or isinstance(value, (list, tuple)) for key, value in own.items())


def _settle_steps(
    config: dict[str, Any],
    recorded: Mapping[str, Any],
    flops: float | None,
    budget: Budget,
    wanted: tuple[int, int],
    lr: float,
) -> None:
    """Batch size and learning rate; and before the first step how many steps there will be, of an image's `flops`.
    Those of a class of the user's own aren't known: None."""
    enough, fewest = wanted
    optimizer = config["optimizer"]
    if config["batch_size"] == "auto":
        config["batch_size"] = recorded.get("batch_size") or choose_batch(flops or 0, budget, enough)
    if optimizer["lr"] == "auto":
        config["optimizer"] = optimizer | {"lr": recorded.get("optimizer", {}).get("lr") or round(lr, 6)}
    if flops and not recorded:
        _forecast(budget, flops * config["batch_size"], config["batch_size"], fewest)


def _forecast(budget: Budget, flops: float, batch: int, fewest: int) -> None:
    """Says how far the time given comes, or how long the steps given take, by the operations of a step."""
    steps, machine = budget.steps_in_time(flops), f"{budget.speed / 1e9:.0f} GFLOP/s, as its kind reaches in training"
    minutes = (budget.steps or 0) * flops / budget.speed / 60
    if steps is None:
        if minutes >= 2:
            print(f"{budget.steps} steps of {batch} will take about {minutes:.0f} minutes ({machine})", flush=True)
        return
    print(f"about {steps} steps of {batch} will fit into the time given ({machine})", flush=True)
    if steps < fewest:
        longer = math.ceil((budget.seconds or 0) * fewest / max(steps, 1) / 60)
        print(
            f"warning: at least {fewest} are wanted, fewer rarely give more than smears: about {longer} minutes of "
            "trainer.max_time, smaller images (data.size=), or a smaller network",
            flush=True,
        )


def _factor(spec: Mapping[str, Any]) -> int:
    return int(spec["stem"]) * 2 ** (len(spec["channels"]) - 1)
