"""What is printed when a run continues with another config."""

import pytest
import torch
import yaml

from ldm.common.errors import UserError
from ldm.training.runs import resume
from ldm.training.runs.folder import RunFolder, write_checkpoint


def started(path, config: dict) -> RunFolder:
    """A run of that config with a checkpoint of step 3."""
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump(config))
    saved = {"global_step": 3, "BatchModule": {"position": 24}, "ldm_depends_on": {"data": "d", "first_stage": "f"}}
    saved |= {"callbacks": {}, "ldm_total_steps": 8, "optimizer_states": [{"param_groups": [{"lr": 0.1}]}]}
    write_checkpoint(folder.checkpoints / "step-00000003.ckpt", lambda file: torch.save(saved, file))
    return folder


DEPENDS = {"data": "d", "first_stage": "f"}


def test_a_run_of_before_latents_had_a_type_continues_in_float32(tmp_path, capsys):
    folder = started(tmp_path, {"seed": 0, "vae": {"channels": 8}})
    start = resume.check(folder, {"seed": 0, "vae": {"channels": 8}, "latents_dtype": "float32"}, DEPENDS)
    assert (start.step, start.position) == (3, 24) and capsys.readouterr().out == ""
    resume.check(folder, {"seed": 0, "vae": {"channels": 8}}, DEPENDS)  # stage one has no such option
    assert capsys.readouterr().out == ""
    resume.check(folder, {"seed": 0, "vae": {"channels": 8}, "latents_dtype": "float16"}, DEPENDS)
    assert "latents_dtype was float32, is float16" in capsys.readouterr().out


def test_another_architecture_or_first_stage_is_refused(tmp_path):
    folder = started(tmp_path, {"seed": 0, "vae": {"channels": 8}})
    with pytest.raises(UserError, match="vae.channels was 8, is 16"):
        resume.check(folder, {"seed": 0, "vae": {"channels": 16}}, DEPENDS)
    with pytest.raises(UserError, match="another first stage"):
        resume.check(folder, {"seed": 0, "vae": {"channels": 8}}, DEPENDS | {"first_stage": "g"})


def test_a_run_whose_first_stage_was_named_by_its_whole_hash_continues(tmp_path):
    config = {"seed": 0, "network": {"channels": 8}}
    folder, now = started(tmp_path, config), DEPENDS | {"first_stage": "encoder"}
    assert resume.check(folder, config, now, whole=lambda: "f").step == 3
    with pytest.raises(UserError, match="another first stage"):
        resume.check(folder, config, now, whole=lambda: "g")


def test_a_run_of_before_a_part_could_be_trained_trained_all(tmp_path, capsys):
    folder = started(tmp_path, {"seed": 0})
    resume.check(folder, {"seed": 0, "base": None, "train": "all"}, DEPENDS)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="train was all, is decoder"):
        resume.check(folder, {"seed": 0, "train": "decoder"}, DEPENDS)
