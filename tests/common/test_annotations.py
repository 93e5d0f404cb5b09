"""Values checked against annotations, and the messages for those that don't fit."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ldm.common.annotations import annotations_of, check_argument, check_arguments, check_value, describe, fits
from ldm.common.errors import UserError

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
    (ValueError, ["any value fits an unknown type"], []),
]


@pytest.mark.parametrize(("kind", "good", "bad"), FITTING)
def test_values_fit_their_annotation(kind, good, bad):
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)


def test_messages_show_values_as_they_are_typed():
    with pytest.raises(
        UserError,
        match=r"^network.attention=\[true,x\]: give true or false or a list of "
        r"values, each true or",
    ):
        check_value([True, "x"], bool | Sequence[bool], "network.attention")
    assert describe(tuple[int, int] | None) == "[whole number,whole number] or null"


def test_annotations_that_their_own_default_contradicts_are_left_out():
    def theirs(a: int = None, b: int = 3, c=4, *, d: "NotImported" = 5):  # type: ignore[assignment,name-defined]  # noqa: F821
        pass

    assert annotations_of(theirs) == {}

    def ours(a: int = None, b: int = 3, c=4):  # type: ignore[assignment]
        pass

    assert annotations_of(ours) == {"b": int}


# Arguments of a call in Python ---------------------------------------------------------------------------------------


@check_arguments
def called(n: int, scale: float = 1.0, sizes: Sequence[int] | None = None, on: bool = False, by: Any = None):
    """As it was written."""
    return n, scale, sizes, on, by


def test_a_checked_function_takes_what_fits_and_arrays_and_tensors_too():
    assert called(3) == (3, 1.0, None, False, None) and called.__doc__ == "As it was written."
    assert called(np.int64(3), np.float32(0.5), range(2), True, "x")[:3] == (3, 0.5, range(2))
    assert called(torch.tensor(3), torch.tensor(0.5), torch.tensor([1, 2]))[0] == 3
    assert called(3, sizes=np.array([1, 2]), by=float("nan"))[0] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 2.5}, "n=2.5: give a whole number."),
        ({"n": "3"}, "n='3': give a whole number."),
        ({"n": True}, "n=True: give a whole number."),
        ({"n": torch.tensor(2.5)}, r"n=tensor\(2.5000\): give a whole number."),
        ({"n": 1, "scale": None}, "scale=None: give a number."),
        ({"n": 1, "scale": float("nan")}, "scale=nan: give a finite number."),
        ({"n": 1, "scale": float("-inf")}, "scale=-inf: give a finite number."),
        ({"n": 1, "sizes": [1, 2.5]}, r"sizes=\[1, 2.5\]: give a list of values, each a whole number."),
        ({"n": 1, "sizes": "12"}, "sizes='12': give a list"),
        ({"n": 1, "on": "no"}, "on='no': give True or False."),
    ],
)
def test_a_checked_function_refuses_what_doesnt_fit_in_one_sentence(given, message):
    with pytest.raises(UserError, match=f"^{message}"):
        called(**given)


def test_nan_is_refused_within_lists_and_mappings_too():
    check_argument([0.5, float("inf")], tuple[float, float], "interval")  # no upper end
    with pytest.raises(UserError, match="interval="):
        check_argument([float("nan"), 1.0], tuple[float, float], "interval")
    with pytest.raises(UserError, match="guidance="):
        check_argument({"text": float("nan")}, float | Mapping[str, float], "guidance")
