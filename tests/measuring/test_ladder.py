"""What is computed from times, and the table."""

import numpy as np
import pytest
from rung_of_times import SIZES, rung

from utils.measuring.ladder import Measurement, compared, markdown_table, measured_rung, text_table


def test_comparison_by_hand():
    rungs = [
        rung("first", [[8.0] * 5, [12.0] * 5]),
        rung("linear", [[1.0] * 5, [1.0] * 5], step=False),
        rung("second", [[2.0] * 5, [3.0] * 5]),
        rung("large", [[100.0] * 5, [100.0] * 5], step=False, accuracy=None),
    ]
    rungs = compared(rungs, rungs[3], usd_per_hour=0.36)
    first, linear, second, large = rungs
    assert [each.score for each in rungs] == [0.9, 0.9, 0.9, None]
    assert first.seconds == pytest.approx(0.1) and second.speedup == pytest.approx(4)
    assert second.speedup_range == pytest.approx([4, 4])
    # A step is over the step before, whatever stands between.
    assert (first.step_speedup, linear.step_speedup, large.step_speedup) == (None, None, None)
    assert second.step_speedup == pytest.approx(4)
    assert second.speedup_vs_baseline == pytest.approx(40)
    # 100 million queries of 2.5 ms are 69.4 hours.
    assert second.usd_per_100m == pytest.approx(100e6 * 2.5e-3 / 3600 * 0.36)
    shown = text_table(rungs, True, [])
    assert len({len(line) for line in shown.splitlines()[:2]}) == 1 and "40x" in shown
    cells = [
        line.strip("| ").split(" | ") for line in markdown_table(rungs, True, [("broken", "no | reason")]).splitlines()
    ]
    assert {len(line) for line in cells[:-1]} == {13}
    assert cells[-1][:2] == ["broken", r"failed: no \| reason"]


def test_several_instances_are_as_fast_as_the_clock_says():
    logits, true = np.eye(2)[[0] * 10], np.zeros(10, dtype=int)
    measurement = Measurement(logits, [np.full(10, 3.0)] * 3, [0.02, 0.016, 0.03], tokens_share=0.9)
    two = measured_rung("two", measurement, true, step=True, **SIZES)
    assert two.ms_a_row == pytest.approx(2.0)
    assert two.ms_a_row_of_turns == pytest.approx([2.0, 1.6, 3.0])
    assert two.latency_ms["p50"] == 3.0
    assert two.ms_a_row_from_tokens == pytest.approx(1.8)
