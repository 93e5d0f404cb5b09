"""A diffusers autoencoder as first stage of a run, and the run's export by the command."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import ldm
from ldm.commands.export import main
from ldm.common.errors import UserError
from tests.interop.configs import vae
from tests.interop.models import diffusers, randomised
from tests.reliability.runs import train


def test_an_autoencoder_of_diffusers_is_a_first_stage_and_the_run_is_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = vae(8, 8, in_channels=1, out_channels=1, latent_channels=2)
    randomised(diffusers.AutoencoderKL(**config)).save_pretrained("theirs")
    train("ldm", "first_stage=theirs", "trainer.max_steps=2", "name=mine", "whitening=file")
    assert ldm.load("runs/ldm/mine").latent_std.tolist() == pytest.approx([1 / 0.18215] * 2)
    main(["run=mine", "to=diffusers", "out=out", "licence=cc0-1.0"])
    assert "unet: stock class" in capsys.readouterr().out
    card = Path("out/README.md").read_text()
    assert "license: cc0-1.0" in card and "- n: 60" in card and "val" in card and str(tmp_path) not in card
    pipe = diffusers.DiffusionPipeline.from_pretrained("out", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(labels=["b"], num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
    assert json.loads(Path("out/model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]


def test_the_command_says_what_it_needs(monkeypatch):
    with pytest.raises(UserError, match="run=NAME_OR_PATH"):
        main(["run=emoji"])
    with pytest.raises(UserError, match="did you mean|Did you mean"):
        main(["rum=emoji"])
    monkeypatch.setattr(sys, "argv", ["export"])
    monkeypatch.delitem(sys.modules, "ldm.interop.export")  # as in a process that runs it first
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("ldm.interop.export", run_name="__main__")
    assert isinstance(stopped.value.code, str) and "is now `ldm export`" in stopped.value.code


def test_the_files_of_an_export_need_no_ldm():
    from ldm.interop.exporting.flatten import flat

    for name in ("ldm_unet", "ldm_vae", "ldm_conditioner", "ldm_pipeline"):
        source = flat(f"ldm.interop.exporting.beside.{name}")
        compile(source, name, "exec")
        assert "import ldm" not in source and "from ldm" not in source
