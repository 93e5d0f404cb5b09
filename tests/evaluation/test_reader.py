"""The judge of emoji scenes."""

import numpy as np
import pytest
import torch

from ldm.data.sources.emoji import Emoji
from ldm.data.sources.scenes import Scenes, draw_any
from ldm.evaluation.measures.scene_reader import caption_scores, train_reader

EMOJI = Emoji(objects=("cat", "apple", "rocket"))


@pytest.fixture(scope="module")
def judged() -> tuple[dict[str, float], dict[str, float]]:
    """Scores of 200 real scenes, and of the same images under other captions."""
    reader = train_reader(EMOJI, steps=80, batch_size=32)
    scenes = draw_any(EMOJI.held_out, 200, seed=99)
    images = torch.from_numpy(EMOJI.compose(scenes, 99)[0]).float() / 127.5 - 1
    shuffled = Scenes(**{name: np.roll(column, 1) for name, column in scenes.columns().items()})
    return caption_scores(reader, images, scenes.columns()), caption_scores(reader, images, shuffled.columns())


def test_real_scenes_are_read(judged: tuple[dict[str, float], dict[str, float]]) -> None:
    assert judged[0]["all"] > 0.9


def test_wrong_captions_are_noticed(judged: tuple[dict[str, float], dict[str, float]]) -> None:
    assert judged[1]["all"] < 0.2
    assert judged[1]["background"] < 0.5
