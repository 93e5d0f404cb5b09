"""Every shipped config composes, and each of its options is in a constructor's signature."""

import itertools

import pytest
from hydra import initialize_config_dir

from ldm.common import registry
from ldm.config.checking import checked
from ldm.config.compose import CONF, compose

GROUPS = {
    "train_vae": ["data", "vae", "trainer", "logger", "sweep", "launcher"],
    "train_ldm": ["data", "network", "conditioner", "diffusion", "trainer", "logger", "finetune", "sweep", "launcher"],
}


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def cases() -> list[tuple[str, list[str]]]:
    """Each choice of each group at least once, with as few compositions as that takes; each experiment by itself."""
    found: list[tuple[str, list[str]]] = [("sample", ["++run=x"]), ("evaluate", ["++run=x"])]
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
    open_values = (
        ["++data.root=x"] if options[0] in ("data=folder", "experiment=folder", "experiment=characters") else []
    )
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
def test_a_diffusion_s_parts_are_built_and_its_noise_levels_follow(diffusion):
    from ldm.diffusion import get_sampler

    section = checked("train_ldm", *compose("train_ldm", [f"diffusion={diffusion}"]))["diffusion"]
    parameterization = registry.build(section["parameterization"])
    sampling = section["sampling"]
    get_sampler(sampling["sampler"])
    sigmas = parameterization.grid(sampling["steps"], sampling.get("spacing"))
    assert len(sigmas) == sampling["steps"] + 1
    assert registry.build(section["noise"]).sigma(sigmas[:3].float().clamp(0.1, 0.9), parameterization).shape == (3,)
