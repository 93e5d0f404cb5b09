"""Where work before training is done."""

import pytest
import torch

from ldm.training.trainer.fit import device_for


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("trainer", "environment", "wanted"),
    [
        ({}, {}, "cuda:0"),
        ({"accelerator": "auto", "devices": 4}, {"LOCAL_RANK": "3"}, "cuda:3"),
        ({"accelerator": "gpu"}, {"SLURM_LOCALID": "2"}, "cuda:2"),
        ({"accelerator": "gpu", "devices": [2, 3]}, {}, "cuda:2"),
        ({"accelerator": "gpu", "devices": [2, 3]}, {"LOCAL_RANK": "1"}, "cuda:3"),
        ({"accelerator": "gpu", "devices": "2,3"}, {"LOCAL_RANK": "1"}, "cuda:3"),
        ({"accelerator": "cpu", "devices": 2}, {"LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_it_is_the_device_that_the_trainer_takes(four_gpus, monkeypatch, trainer, environment, wanted):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert device_for({"trainer": trainer}) == torch.device(wanted)
