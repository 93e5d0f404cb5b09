"""Every shipped config composes, and each of its options is in a constructor's signature."""

import itertools

import pytest
import torch
from hydra import initialize_config_dir

import ldm
from ldm.conditioning import Conditioner
from ldm.config.checking import checked
from ldm.config.compose import CONF, compose
from ldm.images import Preprocess
from ldm.networks import Identity
from ldm.training.ldm_run import build_denoiser

OWN = ("small_set", "photos", "pixel_art", "scans")  # recipes for images of one's own
GROUPS = {
    "train_vae": ["data", "vae", "trainer", "logger", "sweep", "launcher"],
    "train_ldm": ["data", "network", "conditioner", "diffusion", "trainer", "logger", "finetune", "sweep", "launcher"],
}


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def cases() -> list[tuple[str, list[str]]]:
    """Each choice of each group at least once, with as few compositions as that takes; each experiment by itself."""
    found: list[tuple[str, list[str]]] = [("sample", ["++run=x"]), ("evaluate", ["++run=x"]), ("score", ["++run=x"])]
    for script, groups in GROUPS.items():
        known = {group: choices(group) for group in groups}
        for i in range(max(map(len, known.values()))):
            found.append((script, [f"{group}={names[i % len(names)]}" for group, names in known.items()]))
        found += [(script, [f"experiment={name}"]) for name in choices("experiment") if suits(name, script)]
    return found


def suits(experiment: str, script: str) -> bool:
    """Some experiments are of stage two alone: they choose its network."""
    return script == "train_ldm" or "override /network" not in (CONF / "experiment" / f"{experiment}.yaml").read_text()


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.parametrize(("script", "options"), cases())
def test_every_choice_is_valid(script, options):
    of_folders = ("data=folder", *(f"experiment={name}" for name in ("folder", "characters", *OWN)))
    open_values = ["++data.root=x"] if options[0] in of_folders else []
    open_values += ["++data.root=x"] if "data=shards" in options else []
    open_values += ["++data.dataset=x"] if "data=huggingface" in options else []
    open_values += ["++conditioner.text.path=x"] if "conditioner=frozen_text" in options else []
    open_values += ["++control=canny"] if "finetune=controlnet" in options else []
    open_values += ["++word=x"] if "finetune=textual_inversion" in options else []
    open_values += ["++conditioner.image.encoder=x"] if "conditioner=image" in options else []
    checked(script, *compose(script, [*options, *open_values]))


def test_every_group_is_reached():
    folders = {entry.name for entry in CONF.iterdir() if entry.is_dir()}
    assert folders == {"experiment", *itertools.chain(*GROUPS.values())}


def test_sizes_for_a_pair_of_data_and_network_are_only_for_that_pair():
    vae = {name: compose("train_vae", ["data=emoji", f"vae={name}"])[0].vae for name in ("small", "kl_f8")}
    assert "stem" in vae["small"] and "stem" not in vae["kl_f8"]
    assert list(vae["kl_f8"].multipliers) == [1, 2, 4, 4]


@pytest.mark.parametrize("diffusion", choices("diffusion"))
def test_diffusions_can_be_built_and_sampled(diffusion):
    config = checked("train_ldm", *compose("train_ldm", [f"diffusion={diffusion}"]))
    config["network"] = {"class": "UNet", "channels": [8], "blocks": 1, "attention": False, "groups": 4}
    first_stage, conditioner = Identity(1), Conditioner({})
    denoiser = build_denoiser(config, first_stage, conditioner)
    torch.manual_seed(0)
    torch.nn.init.normal_(denoiser.network.conv_out.weight, std=0.1)  # it starts at 0, for an output of 0 everywhere
    sampling = dict(config["diffusion"]["sampling"])
    model = ldm.LatentDiffusion(first_stage, denoiser, conditioner, Preprocess(1, 8, 8), sampling).eval()
    one, other = (model.generate(n=2, seed=seed, steps=3, output="pt") for seed in (0, 9))
    assert one.shape == (2, 1, 8, 8) and one.isfinite().all() and one.abs().max() <= 1
    assert not torch.equal(one, other)
