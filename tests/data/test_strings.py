import numpy as np
import pytest

from ldm.data.storage.strings import Strings


@pytest.mark.parametrize(
    "column",
    [
        ["a cat", "", "一条鱼", "قطة", "a cat"],
        [["a cat", "kitty"], ["fish", "herring"], [], ["", "x"]],
        [],
        [""],
        ["na\udce9me.png"],  # a file name that isn't UTF-8, as Python gives it
    ],
)
def test_what_is_saved_is_read_back(tmp_path, column):
    Strings.save(tmp_path, "text", column)
    read = Strings(tmp_path, "text")
    assert read == column and len(read) == len(column)
    assert [read[i] for i in range(len(column))] == column
    assert read[-2:] == column[-2:] and list(reversed(read)) == column[::-1]
    with pytest.raises(IndexError):
        read[len(column)]


def test_a_list_of_one_is_that_string(tmp_path):
    Strings.save(tmp_path, "text", ["one", ["two", "three"], ["four"]])
    assert Strings(tmp_path, "text") == ["one", ["two", "three"], "four"]


def test_numbers_as_numpy_gives_them_are_rows(tmp_path):
    Strings.save(tmp_path, "text", ["one", "two"])
    assert Strings(tmp_path, "text")[np.int64(1)] == "two"


def test_other_columns_do_not_fit():
    assert Strings.fits(["a", ["b"]]) and not Strings.fits(["a", None]) and not Strings.fits([1])
