import numpy as np
import pytest

from ldm.common.errors import UserError
from ldm.data.balance import balanced_repeats, describe_balance
from ldm.data.datamodule import TrainBatches, visits_of
from ldm.data.storage.table import Table
from ldm.images import Preprocess


def table_of(values, **columns) -> Table:
    values = np.asarray(values)
    images = np.zeros((len(values), 1, 2, 2), np.uint8)
    return Table(images, {"label": values, **columns}, Preprocess(1, 2, 2), key="t")


def test_a_rare_value_is_visited_as_often_as_a_common_one():
    table = table_of([0] * 12 + [1] * 3 + [2] * 2)
    (visits,) = visits_of([table], "label")
    rows = visits.rows(np.arange(visits.total))
    counts = np.bincount(np.asarray(table.columns["label"])[rows])
    assert counts.tolist() == [12, 12, 12]


def test_counts_that_do_not_divide_are_equal_to_within_a_tenth():
    table = table_of([0] * 100 + [1] * 70 + [2] * 9)
    (repeats,) = balanced_repeats([table], "label")
    counts = np.bincount(table.columns["label"], weights=repeats)
    assert counts.max() / counts.min() < 1.22
    assert len(set(repeats[:100])) == 1 and repeats.min() >= 1


def test_repeats_of_the_data_count_and_remain_relative_within_a_value():
    table = table_of([0, 0, 1], repeats=np.array([1, 3, 1]))
    (repeats,) = balanced_repeats([table], "label")
    assert repeats.tolist() == [1, 3, 4]


def test_balanced_data_are_visited_once():
    (repeats,) = balanced_repeats([table_of([3, 3, 5, 5])], "label")
    assert repeats.tolist() == [1, 1, 1, 1]


def test_values_are_counted_over_all_buckets():
    first, second = balanced_repeats([table_of([0, 0, 0]), table_of([0, 1])], "label")
    assert first.tolist() == [1, 1, 1] and second.tolist() == [1, 4]


def test_batches_follow_the_balance_and_resume_at_any_position():
    table = table_of([0] * 30 + [1] * 3)
    batches = TrainBatches(table, ["label"], seed=0, batch_size=10, balance="label")
    labels = np.concatenate([batches[np.arange(k, k + 10)]["label"].numpy() for k in range(0, 60, 10)])
    assert np.bincount(labels).tolist() == [30, 30]
    np.testing.assert_array_equal(batches[np.arange(20, 30)]["label"].numpy(), labels[20:30])


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("lable", "isn't a column of the data. Did you mean 'label'"),
        ("text", "isn't a column of whole numbers"),
        ("map", "columns of whole numbers: label"),
    ],
)
def test_a_column_that_cannot_balance_is_refused(column, why):
    table = table_of([0, 1], text=["a", "b"], map=np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=why):
        balanced_repeats([table], column)


def test_what_it_does_is_said():
    text = describe_balance([table_of([0, 0, 1])], "label")
    assert text == "balance=label: 2 values, visited equally often; an epoch visits an image 1 to 2 times"
