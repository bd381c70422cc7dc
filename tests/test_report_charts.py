"""Loss curves with axes: ticks and points are where their numbers say, and each loss has words."""

import math

import numpy as np
import pytest
from animate124.pipeline import charts
from animate124.pipeline.loss_words import WORDS
from animate124.system import terms

BOX = charts.BOX
CURVES = {
    "falling": [(n, 3.0 / (n + 1)) for n in range(1, 60)],
    "decades": [(n, 10.0**-n) for n in range(8)],
    "signed": [(10 * n, math.sin(n)) for n in range(40)],
    "flat": [(n, 0.25) for n in range(5)],
    "zero": [(n, 0.0) for n in range(5)],
    "one step": [(7, 0.5)],
    "tiny": [(n, 3e-8 * (n % 3)) for n in range(30)],
}


def points(text):
    return np.array([[float(v) for v in point.split(",")] for point in text.split()])


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_ticks_say_where_the_points_are(curve):
    made = charts.chart("loss_rgb", curve)
    xy = points(made.points)
    assert len(xy) == len(curve) and made.final == curve[-1][1]
    for line in (xy, points(made.trend)):
        assert line[:, 0].min() >= BOX["left"] and line[:, 0].max() <= BOX["right"]
        assert line[:, 1].min() >= BOX["top"] and line[:, 1].max() <= BOX["base"]
    for ticks, values, column in (
        (made.steps, [step for step, _ in curve], 0),
        (made.values, [value for _, value in curve], 1),
    ):
        assert 1 <= len(ticks) <= 6 and all(len(tick.label) <= 7 for tick in ticks)
        scale = math.log10 if column and curve is CURVES["decades"] else float
        known = [(scale(float(tick.label)), tick.at) for tick in ticks]
        known += [(scale(value), at) for value, at in zip(values, xy[:, column], strict=True)]
        numbers, places = np.array(sorted(known)).T
        if numbers[0] == numbers[-1]:
            assert np.ptp(places) < 0.1
        else:  # on one straight line
            straight = np.interp(numbers, numbers[[0, -1]], places[[0, -1]])
            np.testing.assert_allclose(places, straight, atol=0.1)


def test_what_lies_flat_looks_flat():
    """Values from 0.98 to 1 don't fill the height: the axis begins at 0."""
    curve = [(n, 1 - 0.02 * (n % 2)) for n in range(50)]
    heights = points(charts.chart("loss_rgb", curve).points)[:, 1]
    assert np.ptp(heights) < 0.03 * (BOX["base"] - BOX["top"])


def test_the_trend_is_the_mean_of_what_is_near():
    values = np.random.default_rng(0).random(100)
    mean = charts.means(values.tolist(), 10)
    kernel = np.ones(11)
    within = np.convolve(values, kernel, "same") / np.convolve(np.ones(100), kernel, "same")
    np.testing.assert_allclose(mean, within)
    assert charts.means([1.0, 2.0], 0) == [1.0, 2.0]


def test_what_is_no_number_is_left_out():
    assert charts.chart("loss_rgb", [(1, float("nan")), (2, None)]) is None
    assert len(points(charts.chart("loss_rgb", [(1, 1.0), (2, None), (3, 2.0)]).points)) == 2


def test_each_loss_has_words():
    ours = {key.removeprefix("lambda_") for key in terms.weights()} | {"loss"}  # the token's
    assert WORDS.keys() == ours
    assert charts.chart("loss_unheard_of", [(1, 1.0)]).words == ""
