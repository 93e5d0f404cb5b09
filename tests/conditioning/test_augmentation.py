"""Labels of augmentation as a condition: theirs in training, zero wherever a user generates."""

import pytest
import torch

from ldm.common.errors import UserError
from ldm.conditioning import Augmentation, ClassLabel, Conditioner, conditions_of
from ldm.data.augmenting.transforms import LABELS


def test_training_reads_the_label_and_generating_has_zeros():
    part = Augmentation(LABELS)
    labels = torch.randn(3, LABELS)
    assert torch.equal(part(labels).vector, labels)
    conditioner = Conditioner({"augment": part, "label": ClassLabel(4)})
    assert conditioner.inputs == ("label",) and "augment" in conditioner.needs
    with pytest.raises(UserError, match="can't take augment"):
        conditioner.parse({"augment": [labels[0]]})
    batch = conditioner.parse({"label": [1, 2]})
    assert batch["augment"].shape == (2, LABELS) and not batch["augment"].any()
    terms = conditions_of(conditioner, {"label": [1, 2]}).terms(3.0, lambda images: images, [0, 1])
    assert terms.others
    for cond in (terms.full, *(other for other, _ in terms.others)):
        assert not cond.vector[:, :LABELS].any()  # on both sides of guidance
    assert not conditioner.null(2).vector[:, :LABELS].any()
