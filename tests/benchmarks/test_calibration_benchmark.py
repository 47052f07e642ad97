"""The benchmark of calibration measures no row by what was fitted on it."""

import numpy as np

from benchmarks.calibration import scaled_by_others


def test_every_row_is_scaled_by_what_others_say():
    logits = np.stack([np.arange(1.0, 26.0), np.zeros(25)], axis=1)
    seen = []

    def fit(others: np.ndarray, true: np.ndarray) -> tuple[float, float]:
        np.testing.assert_array_equal(others[:, 0], true)
        seen.append(set(true.tolist()))
        return float(len(seen)), 0.0

    scaled = scaled_by_others(logits, logits[:, 0], fit)
    np.testing.assert_array_equal(scaled[:, 1], 0)
    times = scaled[:, 0] / logits[:, 0]
    assert len(seen) == 10 and all(
        value not in seen[int(time) - 1] for value, time in zip(logits[:, 0], times, strict=True)
    )
    assert all(len(others) in (22, 23) for others in seen)
