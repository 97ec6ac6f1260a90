"""Bars lie where their numbers say, and a waterfall's steps meet."""

import pytest

from fxlrp.report.bars import from_zero, waterfall


def test_waterfall_steps_meet_and_end_at_the_total() -> None:
    chart = waterfall([3.0, -1.0, 0.5], total=2.5)
    *steps, total = chart.bars
    assert chart.zero == 0
    assert [(bar.left, bar.width, bar.negative) for bar in steps] == [
        (0, 100, False),
        (pytest.approx(200 / 3), pytest.approx(100 / 3), True),
        (pytest.approx(200 / 3), pytest.approx(50 / 3), False),
    ]
    assert total.left == 0
    assert total.width == pytest.approx(steps[-1].ends) == pytest.approx(250 / 3)


def test_bars_stay_on_the_chart_whatever_the_signs() -> None:
    for chart in (
        from_zero([-2.0, 1.0]),
        waterfall([-2.0, 3.0, -5.0], total=-4.0),
        from_zero([0.0]),
        from_zero([]),
    ):
        assert 0 <= chart.zero <= 100
        assert all(bar.left >= 0 and bar.left + bar.width <= 100 + 1e-9 for bar in chart.bars)
    assert from_zero([-2.0, 1.0]).zero == pytest.approx(200 / 3)
