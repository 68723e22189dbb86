"""The site's inline charts: where marks stand, and that labels are escaped."""

import math
import re

import pytest

from diffusionblocks.report.charts import STRIP_WIDTH, curves, effect_strip

ROW = {
    "direction": "higher",
    "effect": 0.2,
    "low": 0.1,
    "high": 0.3,
    "published_effect": 0.25,
    "matters": 0.05,
}


def dot(svg):
    return float(re.search(r'circle class="dot" cx="([\d.]+)"', svg)[1])


@pytest.mark.parametrize(("direction", "right"), [("higher", True), ("lower", False)])
def test_right_of_the_line_is_as_claimed(direction, right):
    at = dot(effect_strip(ROW | {"direction": direction}, ""))
    assert (at > STRIP_WIDTH / 2) == right


def test_a_strip_is_true_to_scale():
    svg = effect_strip(ROW, "")
    middle, reach = STRIP_WIDTH / 2, 1.15 * 0.3
    assert dot(svg) == pytest.approx(middle + 0.2 / reach * middle, abs=0.1)
    bar = re.search(r'class="bar" x1="([\d.]+)" x2="([\d.]+)"', svg)
    assert [float(x) for x in bar.groups()] == pytest.approx(
        [middle + v / reach * middle for v in (0.1, 0.3)], abs=0.1
    )


def test_an_interval_that_leaves_the_strip_has_no_cap():
    whole, cut = (effect_strip(ROW | {"high": high}, "") for high in (0.3, 30.0))
    assert (whole.count("bar"), cut.count("bar")) == (3, 2)


def test_what_was_not_measured_is_not_drawn():
    nothing = dict.fromkeys(("effect", "low", "high", "published_effect"), math.nan)
    svg = effect_strip(ROW | nothing, "")
    assert "dot" not in svg and "bar" not in svg and "paper" not in svg and "axis" in svg


def test_labels_are_escaped():
    assert "&lt;b&gt;" in effect_strip(ROW, "<b>")
    assert "<b>" not in curves({"x": ([1, 2], [1, 2])}, "<b>", "<b>")


def test_a_curve_keeps_its_shape():
    svg = curves({"a": ([0, 1, 2], [1, 10, 100])}, "x", "y")
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="(.*?)"', svg)[1].split()]
    # Powers of ten lie on a line of a logarithmic axis, and up is towards zero.
    assert points[1] == pytest.approx(
        [(a + b) / 2 for a, b in zip(*points[::2], strict=True)], abs=0.1
    )
    assert points[0][1] > points[2][1]


def test_values_that_are_no_numbers_are_left_out():
    svg = curves({"a": ([0, 1, 2], [1.0, math.nan, -1.0])}, "x", "y")
    assert len(re.search(r'points="(.*?)"', svg)[1].split()) == 2
    assert "Nothing finite" in curves({"a": ([0], [math.inf])}, "x", "y")
    assert "svg" in curves({"a": ([5], [3.0])}, "x", "y")
