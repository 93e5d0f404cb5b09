"""Stage two with every kind of condition, tiny, from the command line's config to an image."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from omegaconf import OmegaConf

import ldm
from ldm.commands import train_ldm
from ldm.common.errors import UserError
from ldm.conditioning import Augmentation, Conditioner
from ldm.config import overrides
from ldm.config.checking import checked
from ldm.config.compose import CONF, compose, group_names
from ldm.data.sources.digits import Digits
from ldm.training import ldm_run, vae_run
from ldm.training.finetune.run import check_augmentation

COMMON = [
    *("data=emoji", "data.size=16", "data.n=48", "data.val_n=8", "data.objects=[cat,dog,fish]", "logger=none"),
    *("batch_size=8", "samples.n=2", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2"),
    *("trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"),
]
VAE = ["vae.latent_channels=2", "vae.channels=8", "vae.multipliers=[1,1]", "vae.stem=2"]
LDM = [
    "network=unet",
    "network.channels=[8,8]",
    "network.heads=2",
    "network.attention=false",
    "diffusion.sampling.steps=2",
]


def config(script: str, runs: Path, *words: str) -> dict[str, Any]:
    own = VAE if script == "train_vae" else LDM
    _, options = overrides.prepare([*COMMON, *own, f"runs_dir={runs}", *words], group_names())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(script, options)[0]
        checked(script, *compose(script, options))
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditions")
    vae_run.main(config("train_vae", folder))
    return folder


def train(runs: Path, name: str, *words: str) -> Any:
    train_ldm.main(config("train_ldm", runs, f"name={name}", *words))
    return ldm.load(runs / "ldm" / name)


MAP = torch.zeros(16, 16, dtype=torch.long)
IMAGE = torch.zeros(3, 16, 16)


@pytest.mark.parametrize(
    ("conditioner", "call"),
    [
        ("map", {"map": MAP}),
        ("text_map", {"prompt": "a cat", "map": MAP, "guidance": {"text": 3, "map": 1.5}}),
        ("text_inpaint", {"prompt": "a cat", "image": IMAGE, "mask": MAP + 1}),
        ("low_res", {"image": IMAGE[:, :8, :8]}),
    ],
)
def test_it_trains_and_generates(runs: Path, conditioner: str, call: dict[str, Any]) -> None:
    model = train(runs, conditioner, f"conditioner={conditioner}")
    assert model(**call, output="pt").shape == (1, 3, 16, 16)
    assert (runs / "ldm" / conditioner / "samples" / "step-00000002.png").exists()


def test_the_number_of_classes_is_the_data_s(runs: Path) -> None:
    table = ldm.build(config("train_ldm", runs)["data"]).tables(runs / "cache" / "data")[0]
    made = config("train_ldm", runs, "conditioner=map")
    vae = ldm.load(runs / "vae" / "emoji")
    part: Any = ldm_run.build_conditioner(made["conditioner"], None, table, vae).parts["map"]
    assert (part.classes, part.names, part.factor) == (4, ["background", "cat", "dog", "fish"], vae.factor)


def test_pixels_are_loaded_only_where_a_condition_needs_them(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.data.storage.table import Table

    requested: list[tuple[str, ...]] = []
    batch = Table.batch
    monkeypatch.setattr(
        Table, "batch", lambda self, i, keys, *a: (requested.append(tuple(keys)), batch(self, i, keys, *a))[1]
    )
    train(runs, "plain", "conditioner=text_map")
    assert requested and all("image" not in keys for keys in requested)
    train(runs, "pixels", "conditioner=inpaint")
    assert any("image" in keys for keys in requested)


def test_a_run_with_masks_and_noise_resumes_to_the_same_bits(runs: Path) -> None:
    words = ["conditioner.low={class: LowRes}", "conditioner.inpaint={class: Inpaint}", "checkpoint.every_n_steps=1"]
    whole = train(runs, "whole", *words, "trainer.max_steps=4").state_dict()
    run = runs / "ldm" / "whole"
    (run / "DONE").unlink()
    for file in sorted((run / "checkpoints").iterdir())[-1:]:
        step = file.name.split(".")[0]
    for file in (run / "checkpoints").glob(f"{step}*"):
        file.unlink()
    resumed = train(runs, "whole", *words, "trainer.max_steps=4", "resume=true").state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_column_that_the_data_lack_is_refused(runs: Path) -> None:
    with pytest.raises(
        UserError, match="conditioner.inpaint reads 'mask', which the data doesn't have; it has text, map"
    ):
        train(runs, "wrong", "conditioner=inpaint", "conditioner.inpaint.masks=data")


def test_a_model_of_images_by_their_meaning(runs: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "r.pt")
    words = ["conditioner=image", "conditioner.image.encoder=resnet18", f"conditioner.image.weights={tmp_path}/r.pt"]
    model = train(runs, "meaning", *words, "conditioner.image.image_size=32")
    assert model(embed_image=IMAGE, output="pt").shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_augmented_data_bring_their_condition_and_resume_to_the_same_bits(runs: Path, tmp_path: Path) -> None:
    words = ["data.variants=2", "data.augment=0.5", "checkpoint.every_n_steps=1", "trainer.max_steps=4"]
    data = ["data=digits", "data.val_share=0.9", "~data.n", "~data.val_n", "~data.objects"]
    vae_run.main(config("train_vae", tmp_path, *data, *words, "name=v"))
    made = ["first_stage=v", "name=a", *data, *words]
    run = ldm_run.main(config("train_ldm", tmp_path, *made))
    model = ldm.load(run / "model")
    assert [part.column for part in model.conditioner.parts.values()] == ["label", "augment"]
    assert model.generate(labels=3, n=2, steps=2)[0].size == (16, 16)
    whole = model.state_dict()
    (run / "DONE").unlink()
    last = sorted((run / "checkpoints").iterdir())[-1].name.split(".")[0]
    for file in (run / "checkpoints").glob(f"{last}*"):
        file.unlink()
    ldm_run.main(config("train_ldm", tmp_path, *made, "resume=true"))
    for name, tensor in ldm.load(run / "model").state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_a_base_that_does_not_know_augmentation_refuses_it(tmp_path: Path) -> None:
    table, _ = Digits(variants=2, augment=0.1, val_share=0.9).tables(tmp_path)
    plain, _ = Digits(val_share=0.9).tables(tmp_path)
    knows, without = (SimpleNamespace(conditioner=Conditioner(p)) for p in ({"augment": Augmentation()}, {}))
    with pytest.raises(UserError, match="would leak into its samples"):
        check_augmentation(table, without, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="prior_path"):
        check_augmentation(table, knows, {"prior_path": "prompts.txt"})  # type: ignore[arg-type]
    check_augmentation(table, knows, {})  # type: ignore[arg-type]
    check_augmentation(plain, without, {"prior_path": "prompts.txt"})  # type: ignore[arg-type]
