"""Values held against annotations, and what the command line says of those that don't fit."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from ldm.errors import UserError
from ldm.kinds import fits, kinds_of, refuse, words

FITTING = [
    (int, [0, -3, 10**20], [1.5, "1", True, None, [1]]),
    (float, [0, 1e-4], ["1e-4", False, None]),
    (bool, [True, False], [0, "true"]),
    (str, ["", "猫"], [3, None]),
    (int | None, [3, None], [0.5]),
    (int | Sequence[int], [3, [1, 2], []], [[1, "x"], "12", 0.5]),
    (Sequence[bool] | bool, [True, [True, False]], [1, [1]]),
    (tuple[float, float], [[1, 2.5], (0, 1)], [[1], [1, 2, 3], 3]),
    (tuple[int, ...], [[1, 2, 3], []], [["x"]]),
    (float | Mapping[str, float], [2, {"text": 2.5}], [{"text": "x"}, "2"]),
    (Literal["cosine", "linear"], ["cosine"], ["cosinus"]),
    (Any, [1, "x", None, {}], []),
    (ValueError, ["what isn't known may"], []),
]


@pytest.mark.parametrize(("kind", "good", "bad"), FITTING)
def test_values_fit_their_annotation(kind, good, bad):
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)


def test_it_is_said_as_it_would_be_typed():
    with pytest.raises(UserError, match=r"^network.attention=\[true,x\]: give true or false or a list, each true or"):
        refuse([True, "x"], bool | Sequence[bool], "network.attention")
    assert words(tuple[int, int] | None) == "[whole number,whole number] or null"


def test_annotations_that_lie_about_their_own_default_are_left_out():
    def theirs(a: int = None, b: int = 3, c=4, *, d: "NotImported" = 5):  # type: ignore[assignment,name-defined]  # noqa: F821
        pass

    assert kinds_of(theirs) == {}

    def ours(a: int = None, b: int = 3, c=4):  # type: ignore[assignment]
        pass

    assert kinds_of(ours) == {"b": int}
