"""What validation measures of generated images: closed forms on models that give known images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.common.errors import UserError
from ldm.data.storage.buckets import Buckets
from ldm.data.storage.table import Table
from ldm.evaluation.while_training import ImageDistance
from ldm.images import Preprocess
from ldm.training.trainer.measured import Measured, settle_distance


def table(n: int, seed: int, side: int = 8) -> Table:
    images = np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), np.uint8)
    return Table(images, {}, Preprocess(3, side, side), key=f"noise-{seed}")


def config(tmp_path, n: int = 16) -> dict:
    return {
        "distance": {"n": n, "steps": 2, "features": "random"},
        "checkpoint": {"best": "val/fd"},
        "trainer": {"accelerator": "cpu"},
        "seed": 0,
        "batch_size": 8,
        "cache_dir": str(tmp_path),
    }


class Giving:
    """A model that gives known images, in the place of ones that it generates."""

    def __init__(self, images: np.ndarray):
        self.images, self.calls = torch.from_numpy(images).float() / 127.5 - 1, []
        self.sampling = {"steps": 2}
        self.preprocess = Preprocess(3, *images.shape[2:])
        self.conditioner = SimpleNamespace(needs=(), examples=lambda batch, seed: {})

    def generate_for(self, conditions, n, **options):
        self.calls.append(options)
        return self.images[:n]

    def parameters(self):
        return iter([self.images])

    def buffers(self):
        return iter(())


@pytest.fixture
def measure(tmp_path) -> ImageDistance:
    return ImageDistance((table(40, 0), table(16, 1)), config(tmp_path))


def test_validation_images_themselves_are_at_no_distance_and_no_copies(measure):
    figures = measure(Giving(table(16, 1).images))
    assert figures["fd"] == pytest.approx(0, abs=1e-3)
    assert figures["memorised"] == 0 == measure.of_real


def test_training_images_are_copies(measure):
    few = Giving(np.concatenate([table(40, 0).images[:4], table(12, 2).images]))
    assert measure(few)["memorised"] == 4 / 16
    assert measure(few)["fd"] > 0.01


def test_noise_is_the_same_at_every_call(measure):
    model = Giving(table(16, 1).images)
    assert measure(model) == measure(model)
    assert model.calls[0] == model.calls[1] and model.calls[0]["seed"] == 0


def test_buckets_are_compared_in_the_shape_that_is_generated(tmp_path):
    wide, square = table(9, 3, side=16), table(8, 4)
    val = Buckets.of([wide, square], "both")
    measure = ImageDistance((table(40, 0), val), config(tmp_path, n=8))
    assert measure.val is square
    with pytest.raises(UserError, match="no validation image is 8x8"):
        ImageDistance((table(40, 0), Buckets.of([wide], "wide")), config(tmp_path))


def trainer_at(step: int) -> SimpleNamespace:
    said: list[str] = []
    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(
        global_step=step, is_global_zero=True, strategy=strategy, said=said, print=lambda line, **_: said.append(line)
    )


def test_a_rise_of_copies_is_said_once(measure):
    callback, logged = Measured(measure), []
    task = SimpleNamespace(
        log_dict=logged.append, _device_mesh=None, modules=lambda: iter(()), parameters=lambda: iter(())
    )
    lines = []
    for step, copies in ((1, 0), (2, 4), (3, 4), (4, 12)):
        images = np.concatenate([table(40, 0).images[:copies], table(16, 2).images])[:16]
        task.model = lambda images=images: Giving(images)
        callback.on_validation_epoch_end(trainer := trainer_at(step), task)
        lines += trainer.said
    assert [line.split(" of the")[0] for line in lines] == ["step 2: 25%", "step 4: 75%"]
    assert "0% of held-out real images" in lines[0] and "25% before" in lines[1]
    assert [row["val/memorised"] for row in logged] == [0, 0.25, 0.25, 0.75]
    again = Measured(measure)
    again.load_state_dict(callback.state_dict())
    task.model = lambda: pytest.fail("the step was measured before")
    again.on_validation_epoch_end(trainer_at(4), task)
    assert logged[-1] == logged[-2]


def test_number_of_images_follows_the_figure_that_is_wanted(tmp_path):
    made = config(tmp_path) | {"distance": {"n": None}}
    settle_distance(made)
    assert made["distance"]["n"] == 128
    other = made | {"distance": {"n": None}, "checkpoint": {"best": "val/loss"}}
    settle_distance(other)
    assert other["distance"]["n"] == 0
