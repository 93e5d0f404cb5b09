"""Fine-tuning: what trains, what doesn't, and what comes out."""

import pytest
import torch

from ldm.errors import UserError
from ldm.loading import load


def test_a_full_fine_tuning_goes_on_from_the_base_and_gives_a_whole_model(runs, train):
    words = ("finetune=full", "base=digits", "trainer.max_steps=2", "optimizer.lr=0.01", "samples.every_n_steps=1")
    run = train("ldm", runs, *words, "name=digits-full")
    base, tuned = load(runs / "ldm" / "digits"), load(run)
    state, after = base.state_dict(), tuned.state_dict()
    assert state.keys() == after.keys()
    same = {name.partition(".")[0] for name in state if torch.equal(state[name], after[name])}
    assert {"first_stage", "latent_mean", "latent_std"} <= same
    changed = [n for n in state if not torch.equal(state[n], after[n])]
    assert {n.split(".")[0] for n in changed} == {"denoiser", "conditioner"}
    assert [p.name for p in sorted((run / "samples").iterdir())] == [f"step-0000000{i}.png" for i in range(3)]


def test_a_fine_tuning_without_a_base_is_refused(runs, train):
    with pytest.raises(UserError, match="base="):
        train("ldm", runs, "finetune=full")
    with pytest.raises(UserError, match="no run 'nowhere'"):
        train("ldm", runs, "finetune=full", "base=nowhere")
    with pytest.raises(UserError, match="finetune="):
        train("ldm", runs, "base=digits")
