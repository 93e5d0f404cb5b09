"""The model folder: what is saved is what comes back, and nothing else is taken."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm import artifact
from ldm.common.errors import UserError
from ldm.conditioning.text import tokenizer
from ldm.diffusion import EDM, V
from ldm.images import Preprocess

ROOT = Path(__file__).parents[1]


@functools.cache
def make(seed: int = 0, **sampling) -> ldm.LatentDiffusion:
    torch.manual_seed(seed)
    text = ldm.Text(tokenizer.train(["a cat", "a dog"], 280), length=16, dim=8, depth=1, heads=2)
    conditioner = ldm.Conditioner({"text": text, "label": ldm.ClassLabel(3, ["a", "b", "猫"], dim=8)})
    network = ldm.UNet(2, channels=[8, 8], heads=2, context_dim=8, vector_dim=conditioner.vector_dim)
    model = ldm.LatentDiffusion(
        ldm.AutoencoderKL(1, 2, channels=8, multipliers=[1, 1]),
        ldm.Denoiser(network, V()),
        conditioner,
        Preprocess(channels=1, height=8, width=8, background=[0]),
        {"steps": 2, **sampling},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.latent_mean.copy_(torch.tensor([0.5, -1.0]))
    model.latent_std.copy_(torch.tensor([2.0, 0.5]))
    return model.eval()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(folder: Path, config=None, weights=None) -> None:
    """Changes files of a model folder and lets the manifest agree with them."""
    if config is not None:
        (folder / "config.json").write_bytes(artifact.to_json(config))
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
    files = {name: artifact._fingerprint(folder / name) for name in artifact.FILES}
    (folder / "manifest.json").write_bytes(artifact.to_json({"format": artifact.FORMAT, "files": files}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return artifact.save(make(), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def test_what_is_saved_comes_back_bit_for_bit(folder):
    model, again = make(), artifact.load(folder)
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    assert artifact.describe(again) == artifact.describe(model)
    assert artifact.model_hash(again) == artifact.model_hash(model)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert not any(t.is_meta for t in again.state_dict().values())
    options = {"labels": ["猫"], "seed": 3, "guidance": 2.0, "output": "pt"}
    # The loaded one lies in memory as channels_last: the sums are the same in another order.
    torch.testing.assert_close(again(["a cat"], **options), model(["a cat"], **options), atol=1e-5, rtol=0)


def test_equal_models_give_equal_bytes_and_others_do_not(folder, tmp_path):
    twin = make.__wrapped__()
    assert twin is not make()
    assert content(artifact.save(twin, tmp_path / "twin")) == content(folder)
    assert content(artifact.save(artifact.load(folder), tmp_path / "again")) == content(folder)
    other = content(artifact.save(make(seed=1), tmp_path / "other"))
    assert other["config.json"] == content(folder)["config.json"]
    assert other["model.safetensors"] != content(folder)["model.safetensors"]
    assert artifact.model_hash(make()) != artifact.model_hash(make(seed=1))
    assert artifact.model_hash(make()) != artifact.model_hash(make(sampler="euler"))


def test_the_folder_names_no_path_and_no_date(folder, tmp_path):
    config = (folder / "config.json").read_text()
    assert sorted(content(folder)) == ["config.json", "manifest.json", "model.safetensors"]
    assert str(tmp_path) not in config and "猫" in config
    assert json.loads(config)["model"]["class"] == "LatentDiffusion"


def test_an_autoencoder_keeps_its_preprocessing(tmp_path):
    vae = ldm.AutoencoderKL(1, 2, channels=8)
    vae.preprocess = Preprocess(1, 12, 8, bits=16)
    again = ldm.load(artifact.save(vae, tmp_path / "vae"))
    assert again.preprocess.shape == (1, 12, 8) and again.preprocess.bits == 16


def test_saving_again_replaces_the_model(folder):
    artifact.save(make(seed=1), folder)
    assert artifact.model_hash(ldm.load(folder)) == artifact.model_hash(make(seed=1))


@pytest.mark.parametrize("name", artifact.FILES)
def test_a_flipped_bit_is_found(folder, name):
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=rf"{name} (is damaged|can't be read)"):
        ldm.load(folder)


@pytest.mark.parametrize("name", [*artifact.FILES, "manifest.json"])
@pytest.mark.parametrize("length", [0, 100])
def test_a_truncated_file_is_refused(folder, name, length):
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    with pytest.raises(UserError, match=rf"{name} (is damaged|can't be read)"):
        ldm.load(folder)


@pytest.mark.parametrize("name", [*artifact.FILES, "manifest.json"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} (is damaged|is missing|can't be read)"):
        ldm.load(folder)


@pytest.mark.parametrize("manifest", ["[]", "null", '{"files": []}', '{"files": {"config.json": 3}}', "\ufffd"])
def test_a_damaged_manifest_is_refused(folder, manifest):
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="is damaged"):
        ldm.load(folder)


def test_weights_that_do_not_fit_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["latent_mean"]
    weights["denoiser.network.extra"] = torch.zeros(1)
    weights["latent_std"] = torch.ones(3)
    rewrite(folder, weights=weights)
    with pytest.raises(UserError) as error:
        ldm.load(folder)
    for problem in ("missing latent_mean", "unexpected denoiser.network.extra", "latent_std is (3,), not (2,)"):
        assert problem in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"format": None}, "format None"),
        ({"model": {"class": "os.system", "command": "ls"}}, "no class is registered as 'os.system'"),
        ({"model": {"class": "UNet", "in_channels": 2, "colour": 3}}, "colour: UNet has no such option"),
        ({"model": {"class": "UNet"}}, "needs in_channels"),
        ({"model": ["UNet"]}, "its config doesn't say how to build a model"),
        ({"model": None}, "its config doesn't say how to build a model"),
    ],
)
def test_a_config_of_unknown_make_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder, config=config | change)
    with pytest.raises(UserError, match=message):
        ldm.load(folder)


def test_a_model_of_ones_own_class_is_loaded_once_it_is_registered(tmp_path):
    class Own(torch.nn.Linear):
        def __init__(self, width: int):
            super().__init__(width, 1)

    with pytest.raises(UserError, match="Own isn't registered"):
        artifact.save(Own(2), tmp_path / "own")
    own = ldm.register(Own)(2)
    assert torch.equal(ldm.load(artifact.save(own, tmp_path / "own")).weight, own.weight)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no model at"),
        ({"checkpoints/step-1.ckpt": b"x"}, "no finished model yet"),
        ({"model/config.json": b"{}"}, "holds no whole model"),
    ],
)
def test_what_holds_no_model_is_refused(tmp_path, files, message):
    for name, raw in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=message):
        ldm.load(tmp_path)
    with pytest.raises(UserError, match="there is no model at"):
        ldm.load(tmp_path / "nowhere")


def test_a_run_that_is_named_without_its_folder_is_pointed_to(tmp_path, monkeypatch):
    (tmp_path / "runs" / "ldm" / "emoji").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'runs/ldm/emoji'"):
        ldm.load("emoji")


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "spoilt.ckpt").write_bytes(b"PK" * 50)
    torch.save({"ldm_model": os.system}, tmp_path / "evil.ckpt")
    messages = {
        "foreign": "holds no model",
        "spoilt": "can't be read as a checkpoint",
        "evil": "can't be read as a checkpoint",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=f"{name}.ckpt {message}"):
            ldm.load(tmp_path / f"{name}.ckpt")


def test_a_model_on_another_parameterization_keeps_its_numbers(tmp_path):
    denoiser = ldm.Denoiser(ldm.UNet(2, channels=[8], heads=2), EDM(sigma_data=0.7), loss="huber", huber_c=0.3)
    again = ldm.load(artifact.save(denoiser, tmp_path / "d"))
    assert (again.parameterization.sigma_data, again.huber_c) == (0.7, 0.3)


PROBE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"hydra", "omegaconf", "lightning", "pytorch_lightning", "lightning_fabric"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import ldm
heavy = {"torchvision", "tokenizers", "sklearn", "matplotlib", "PIL"} & set(sys.modules)
assert not heavy, heavy
model = ldm.load(sys.argv[1])
images = model(["a cat"], labels=["b"], output="np", seed=1)
heavy = {"torchvision", "transformers", "diffusers", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
print(images.shape, int(images.astype(int).sum()))
"""


def test_a_model_loads_and_generates_where_the_training_libraries_are_missing(folder, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    images = make()(["a cat"], labels=["b"], output="np", seed=1)
    assert run.stdout.split(") ") == ["(1, 8, 8, 1", f"{int(images.astype(int).sum())}\n"]
