"""Where the objects of a scene may lie."""

import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data.sources.emoji import Emoji
from ldm.data.sources.placing import Placing
from ldm.data.sources.scenes import draw_any

HELD_OUT = Emoji(objects=("cat", "dog", "fish")).held_out
SCENES = draw_any(HELD_OUT, 400, 1)


@pytest.mark.parametrize("jitter", ["three", "pixels"])
@pytest.mark.parametrize("side", [16, 17, 32, 33, 64, 65])
def test_objects_stay_inside_and_never_overlap(side: int, jitter: str) -> None:
    placing = Placing.of(side, jitter)
    corners, sides, two = placing.draw(SCENES, np.random.default_rng(0)), placing.sides(SCENES), SCENES.second >= 0
    assert corners.min() >= 0 and (corners[:, 0].max(1) + sides <= side).all()
    assert (corners[two, 1] + placing.small <= side).all()
    apart = np.abs(corners[two, 1] - corners[two, 0])[np.arange(two.sum()), SCENES.relation[two] - 1]
    assert (apart >= placing.small).all()


@pytest.mark.parametrize(
    ("side", "jitter", "shifts"),
    [
        (32, None, [-2, 0, 2]),
        (63, None, [-3, 0, 3]),
        (64, None, [-4, -3, -2, -1, 0, 1, 2, 3, 4]),
        (64, "three", [-4, 0, 4]),
        (32, "pixels", [-2, -1, 0, 1, 2]),
    ],
)
def test_every_allowed_shift_and_no_other_is_taken(side: int, jitter: str | None, shifts: list[int]) -> None:
    placing = Placing.of(side, jitter)
    assert placing.shifts.tolist() == shifts
    shifted = placing.draw(SCENES, np.random.default_rng(0)) - placing.middles(SCENES)
    free = placing.free(SCENES)
    assert sorted(set(shifted[free].tolist())) == shifts and not shifted[~free].any()
    assert shifted[free].var() == pytest.approx(np.var(shifts), rel=0.1)
    assert (free.sum((1, 2)) == 2).all()  # both ways alone, else one way each
    a, b = shifted[free].reshape(-1, 2).T
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.2  # each for itself


def test_an_unknown_jitter_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'pixels'"):
        Emoji(jitter="pixel")
