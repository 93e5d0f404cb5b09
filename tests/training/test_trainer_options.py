"""Options of Lightning's Trainer that a run sets itself: one sentence each, before work starts."""

import pytest

from ldm.common.errors import UserError
from ldm.training.trainer import options as trainer_options


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_epochs", 3),
        ("num_sanity_val_steps", 2),
        ("inference_mode", True),
        ("plugins", []),
        ("callbacks", []),
        ("logger", False),
        ("default_root_dir", "x"),
        ("enable_checkpointing", True),
        ("enable_model_summary", True),
        ("use_distributed_sampler", True),
    ],
)
def test_what_a_run_sets_itself_is_refused_with_what_to_give(key, value):
    with pytest.raises(UserError, match=f"trainer.{key}=.*: .*(leave it out|give (one of )?those|checkpoint.X)"):
        trainer_options.own({key: value})


def test_what_is_given_as_a_run_sets_it_and_the_rest_pass():
    given = {"num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False, "devices": 1}
    assert trainer_options.own(given) == {"enable_progress_bar": False, "devices": 1}
