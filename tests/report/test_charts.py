"""Charts that everybody can read: a single evaluation is a point, and lines differ not only in colour."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from mvlm.report.charts import POINTS, STYLES, line_chart, thin
from tests.conftest import ROOT

SEEN = {  # how red, green and blue light appear, Machado et al. 2009 at full severity
    "all cones": np.eye(3),
    "no red cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8727]]  # relative to white


def themes() -> list[dict[str, str]]:
    """The colours of the page by name, in its light and its dark theme."""
    page = (ROOT / "mvlm/report/template.html").read_text(encoding="utf-8")
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in page.split("prefers-color-scheme")[:2]]


def light_of(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(light, 0, 1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_lines_can_be_distinguished_with_any_colour_vision(theme: int) -> None:
    colors = themes()[theme]
    lines = [colors[f"line-{number}"] for number in range(8)]
    for matrix in SEEN.values():
        seen = [lab(np.array(matrix) @ light_of(color)) for color in lines]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15
    brightness = [0.05 + float(light_of(color) @ TO_XYZ[1]) for color in (*lines, colors["card"])]
    assert all(max(each / brightness[-1], brightness[-1] / each) >= 3 for each in brightness[:-1]), "WCAG 1.4.11"


def test_a_single_evaluation_is_a_point_with_its_value() -> None:
    chart = line_chart("Mean recall", [([300], [0.1234])])
    assert chart and "0.1234" in chart
    ticks = re.findall(r">([\d.]+)</text>", chart)
    assert {"0", "300"} <= set(ticks) and "285" not in ticks


@pytest.mark.parametrize("curve", [([300], [0.0]), ([100, 200], [0.0, 0.0]), ([100, 200], [0.25, 0.25])])
def test_a_constant_curve_is_shown_above_zero(curve: tuple[list[int], list[float]]) -> None:
    chart = line_chart("R@1", [curve])
    assert chart and not re.search(r">[-−][\d.]+</text>", chart) and re.search(r">0\.0+</text>", chart)


def test_curves_differ_in_dashes_and_a_metric_that_is_never_finite_has_no_chart() -> None:
    chart = line_chart("Loss", [([1, 2], [3.0, 2.0]), None, ([1, 2], [2.0, 1.0])])
    assert chart and chart.count("stroke-dasharray") == 1, "the second curve, the only dashed one, has no points"
    assert len(set(STYLES)) == 3
    assert line_chart("Loss", [([1, 2], [float("nan"), float("nan")])]) is None


def test_long_curves_are_thinned_to_means() -> None:
    steps, values = thin((list(range(1, 10_001)), [float(step) for step in range(1, 10_001)]))
    assert len(steps) == POINTS
    assert steps[-1] == 10_000
    assert values[0] == pytest.approx(np.mean(range(1, 26)))
    assert np.mean(values) == pytest.approx(5000.5)
