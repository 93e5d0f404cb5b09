"""A tiny trained model in a run folder, and the page over it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ldm
from ldm.conditioning.text import tokenizer
from ldm.images import Preprocess
from ldm.model.latent_diffusion import LatentDiffusion

CAPTIONS = ["a cat", "a dog above a rocket", "a fish on a blue background"]


def tiny(parts: tuple[str, ...] = ("text", "label"), seed: int = 0) -> LatentDiffusion:
    """A model of 16 x 16 RGB images with random weights, which text and label do change."""
    torch.manual_seed(seed)
    made: dict[str, Any] = {
        "text": ldm.Text(tokenizer.train(CAPTIONS, 280), length=24, dim=8, depth=1, heads=2),
        "label": ldm.ClassLabel(3, ["cat", "dog", "fish"], dim=8),
    }
    conditioner = ldm.Conditioner({name: made[name] for name in parts})
    vae = ldm.AutoencoderKL(3, 2, channels=8, multipliers=(1, 1))
    network = ldm.UNet(2, channels=[8], heads=2, context_dim=conditioner.token_dim, vector_dim=conditioner.vector_dim)
    from ldm.diffusion import EDM

    model = LatentDiffusion(vae, ldm.Denoiser(network, EDM()), conditioner, Preprocess(3, 16, 16), {"steps": 3})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_run(root: Path, name: str, model: LatentDiffusion) -> Path:
    folder = root / "ldm" / name
    ldm.save(model, folder / "model")
    (folder / "samples").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"class": "Emoji"}, "trainer": {"max_steps": 30}}))
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ldm/tiny takes text and label, runs/ldm/plain takes nothing."""
    root = tmp_path_factory.mktemp("runs")
    save_run(root, "tiny", tiny())
    save_run(root, "plain", tiny((), seed=1))
    return root


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def config(runs: Path, **changes: Any) -> dict[str, Any]:
    """conf/app.yaml with `changes`."""
    shipped = yaml.safe_load((Path(__file__).parents[2] / "conf" / "app.yaml").read_text())
    return (
        shipped | {"run": "tiny", "runs_dir": str(runs), "port": free_port(), "auth": None, "device": "cpu"} | changes
    )


@pytest.fixture(scope="session")
def served(runs: Path) -> Iterator[Any]:
    """The page, served."""
    pytest.importorskip("gradio")
    from ldm.ui.server.serve import serve

    page = serve(config(runs))
    yield page
    page.close()
