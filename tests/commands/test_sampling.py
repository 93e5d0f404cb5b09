"""`sample.py` on a tiny model in a run folder."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ldm
from ldm.commands import sample as sampling
from ldm.common.errors import UserError
from ldm.conditioning import ClassLabel, Conditioner
from ldm.diffusion import EDM, Denoiser
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion
from ldm.networks import AutoencoderKL, UNet


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ldm/tiny and runs/vae/tiny, of random weights, as trained on digits."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    preprocess = Preprocess(channels=1, height=16, width=16)
    vae: Any = AutoencoderKL(1, 2, channels=8, multipliers=(1, 2))
    conditioner = Conditioner({"label": ClassLabel(10, [f"n{i}" for i in range(10)], dim=8)})
    network = UNet(2, channels=8, multipliers=(1,), context_dim=8, vector_dim=8, heads=2)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    model = LatentDiffusion(vae, Denoiser(network, EDM()), conditioner, preprocess, {"steps": 2})
    vae.preprocess = preprocess
    for stage, made in (("ldm", model), ("vae", vae)):
        folder = root / stage / "tiny"
        ldm.save(made, folder / "model")
        (folder / "samples").mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"class": "Digits"}}))
    return root


def config(runs: Path, script: str = "sample", **changes: Any) -> dict[str, Any]:
    """The shipped YAML with `changes`."""
    defaults = yaml.safe_load((Path(__file__).parents[2] / "conf" / f"{script}.yaml").read_text())
    return defaults | {"run": "tiny", "runs_dir": str(runs), "cache_dir": str(runs / "cache")} | changes


def test_a_grid_and_single_images_carry_their_settings(runs: Path, tmp_path: Path) -> None:
    sampling.main(config(runs, labels=[3, "n7"], n=2, seed=5, out=str(tmp_path / "g.png")))
    assert len(list((tmp_path / "g").glob("*.png"))) == 4
    grid = json.loads(Image.open(tmp_path / "g.png").text["ldm"])  # type: ignore[attr-defined]
    assert grid["prompts"] == ["3", "n7"] and grid["sampler"] == "dpmpp_2m"
    last = Image.open(tmp_path / "g" / "00003.png")
    assert last.size == (16, 16)
    assert json.loads(last.text["ldm"])["seed"] == 8  # type: ignore[attr-defined]


def test_an_image_s_own_seed_generates_it_again(runs: Path, tmp_path: Path) -> None:
    sampling.main(config(runs, labels=[3, 7], n=2, seed=5, out=str(tmp_path / "all.png")))
    sampling.main(config(runs, labels=[7], n=1, seed=8, out=str(tmp_path / "one.png")))
    again, first = (np.asarray(Image.open(tmp_path / name)) for name in ("one/00000.png", "all/00003.png"))
    assert np.array_equal(again, first)


def test_another_decoder_gives_other_images_and_is_named(runs: Path, tmp_path: Path) -> None:
    vae = ldm.load(runs / "vae" / "tiny")
    vae.decoder.conv_out.bias += 0.5
    ldm.save(vae, runs / "vae" / "brighter" / "model")
    (runs / "vae" / "brighter" / "config.yaml").write_text("{}")
    for name in (None, "brighter"):
        sampling.main(config(runs, labels=[3], n=1, decoder=name, out=str(tmp_path / f"{name}.png")))
    dark, bright = (Image.open(tmp_path / f"{name}.png") for name in (None, "brighter"))
    assert np.asarray(bright).mean() > np.asarray(dark).mean() + 10
    assert [json.loads(image.text["ldm"]).get("decoder") for image in (dark, bright)] == [None, "brighter"]
    with pytest.raises(UserError, match="a decoder goes into a run of train_ldm.py"):
        sampling.main(config(runs, stage="vae", decoder="brighter", out=str(tmp_path / "vae.png")))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_generated(runs: Path, monkeypatch) -> None:
    monkeypatch.setattr(sampling, "load", None)
    with pytest.raises(UserError, match=r"x.jpg has to end in .png"):
        sampling.main(config(runs, labels=[1], out="x.jpg"))
    (runs / "taken.png").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="is a folder; name a file"):
        sampling.main(config(runs, labels=[1], out=str(runs / "taken.png")))


def test_images_get_new_names_in_the_run_by_default(runs: Path) -> None:
    for _ in range(2):
        sampling.main(config(runs, labels=1, n=1, single=False))
    assert {p.name for p in (runs / "ldm/tiny/samples").glob("*.png")} == {"sample-001.png", "sample-002.png"}


def test_a_file_s_prompts_get_an_image_each_by_default(runs: Path, tmp_path: Path, monkeypatch) -> None:
    counts = []

    def generate(model: Any, config: dict[str, Any]) -> None:
        counts.append(config["n"])
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "_from_model", generate)
    for changes in ({"labels": [1]}, {"prompts_file": "p.txt"}, {"prompts_file": "p.txt", "n": 3}):
        with pytest.raises(KeyboardInterrupt):
            sampling.main(config(runs, **changes))
    assert counts == [4, 1, 3]


def test_the_vae_generates_from_its_prior(runs: Path, tmp_path: Path) -> None:
    sampling.main(config(runs, stage="vae", n=3, out=str(tmp_path / "p.png")))
    assert len(list((tmp_path / "p").glob("*.png"))) == 3


def test_a_mask_of_another_aspect_is_refused_before_anything_is_generated(runs: Path, tmp_path: Path) -> None:
    for name, size in (("image", (20, 10)), ("mask", (10, 20))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    given = {name: str(tmp_path / f"{name}.png") for name in ("image", "mask")}
    with pytest.raises(UserError, match="the image is 10x20, the mask 20x10"):
        sampling.main(config(runs, labels=[1], **given))
    with pytest.raises(UserError, match="the image is 10x20, the control image 20x10"):
        sampling.main(config(runs, labels=[1], image=given["image"], control_image=given["mask"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "a cat"}, "can't take text; it was trained with label"),
        ({"labels": [11]}, "out of range: this model knows 0 to 9"),
        ({"labels": ["n77"]}, "no class is called 'n77'. Did you mean 'n7'"),
        ({"labels": [1], "sampler": "eulr"}, "Did you mean 'euler'"),
        ({"labels": [1], "eta": 0.5}, "no option 'eta'"),
        ({"labels": [1], "size": 17}, "isn't divisible by"),
        ({"labels": [1], "out": "/dev/null/x.png"}, "its folder can't be created"),
        ({"labels": [1], "seed": 10**20}, "is too large"),
        ({"labels": [1], "guidance": float("nan")}, "finite number"),
        ({"stage": "vae", "prompt": "a cat"}, "prompt= is for a run of stage two"),
        ({"run": "tinny"}, "Did you mean 'tiny'"),
        ({"prompt": "a", "prompts_file": "b"}, "exclude each other"),
        ({"prompts_file": "/nowhere"}, "can't be read"),
    ],
)
def test_mistakes_are_answered_in_words(runs: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="(?s)" + re.escape(words)):
        sampling.main(config(runs, **changes))


def test_images_in_half_precision_say_so(runs: Path, tmp_path: Path) -> None:
    wanted = config(runs, out=str(tmp_path / "grid.png"), precision="bfloat16", tile=16)
    sampling.main(wanted)
    with Image.open(tmp_path / "grid.png") as image:
        assert json.loads(image.text["ldm"])["precision"] == "bfloat16"  # type: ignore[attr-defined]


def test_settings_with_infinite_numbers_are_written_as_json() -> None:
    from ldm.commands.sample import as_json

    def never(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    written = json.loads(
        as_json({"interval": (0.5, math.inf), "guidance": {"text": 2.0}, "n": 3}), parse_constant=never
    )
    assert written == {"interval": [0.5, 3.4e38], "guidance": {"text": 2.0}, "n": 3}
