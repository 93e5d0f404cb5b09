import numpy as np
import pytest
from sklearn.datasets import load_digits

from ldm.common.errors import UserError
from ldm.data.sources.digits import Digits


def test_digits_are_all_there_and_read_rightly(tmp_path):
    train, val = Digits().tables(tmp_path)
    assert len(train) + len(val) == 1797 and len(val) == 359
    assert train.images.shape[1:] == (1, 16, 16) and train.images.dtype == np.uint8
    assert not set(train.names) & set(val.names)
    digits = load_digits()
    for table in (train, val):
        rows = [int(name) for name in table.names]
        np.testing.assert_array_equal(table.columns["label"], digits.target[rows])
        # enlarging keeps each 2x2 block's mean near its point
        small = np.asarray(table.images, np.float64).reshape(-1, 8, 2, 8, 2).mean((2, 4)) * 16 / 255
        assert abs(small - digits.images[rows]).mean() < 0.8
    seven = train.columns["label"].tolist().index(7)
    assert train.columns["text"][seven] == "the digit seven"
    assert np.bincount(val.columns["label"]).min() > 20
    assert train.classes == tuple("0123456789")


def test_digits_at_their_own_size_are_untouched(tmp_path):
    train, _ = Digits(size=8).tables(tmp_path)
    rows = [int(name) for name in train.names]
    np.testing.assert_array_equal(train.images[:, 0], np.rint(load_digits().images[rows] * 255 / 16))


def test_the_split_is_fixed_and_keys_differ(tmp_path):
    first, second = Digits().tables(tmp_path / "a"), Digits().tables(tmp_path / "b")
    np.testing.assert_array_equal(first[0].images, second[0].images)
    assert first[0].key == second[0].key != first[1].key
    assert Digits(size=8).tables(tmp_path / "a")[0].key != first[0].key


def test_too_small_a_size_is_refused():
    with pytest.raises(UserError, match="at least 8"):
        Digits(size=4)
