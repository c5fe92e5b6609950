"""The numbers: does the threshold keep its promise, and how long do the pure functions take.

python -m benchmarks.calibration
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.record import Record, interleaved_ms, median
from calibration.ranges import METHODS, histogram, merge
from calibration.split import near_duplicates, thumbnail
from calibration.threshold import overkill_interval, set_threshold

TRIALS = 2000
PARTS, LINE_PARTS, TARGET, LEVEL = 120, 240, 0.02, 0.99


def main() -> int:
    record = Record("calibration")
    rng = np.random.default_rng(0)
    outside, above = 0, 0.0
    for _ in range(TRIALS):
        limit = set_threshold(rng.lognormal(size=PARTS), TARGET)
        assert limit.rank is not None
        rejected = int((rng.lognormal(size=LINE_PARTS) > limit.value).sum())
        low, high = overkill_interval(PARTS, limit.rank, LINE_PARTS, LEVEL)
        outside += not low <= rejected <= high
        above += rejected / LINE_PARTS
    record.figure(f"lines whose overkill lies outside the {LEVEL:.0%} interval", outside / TRIALS, "", 1 - LEVEL)
    record.figure(f"mean false-reject rate for a target of {TARGET:.0%}", above / TRIALS, "", TARGET)
    pictures = rng.integers(0, 256, (300, 64, 64, 3)).astype(np.uint8)
    thumbnails = np.stack([thumbnail(picture) for picture in pictures])
    values = rng.normal(size=(1, 96, 128, 128)).astype(np.float32)
    seen = merge(histogram(values), histogram(2 * values))
    times = interleaved_ms(
        {
            "near-duplicates of 300 pictures": lambda: near_duplicates(thumbnails),
            "histogram of 1.6 million values": lambda: histogram(values),
            "mse range of a histogram": lambda: METHODS["mse"](seen),
            "threshold of 1000 scores": lambda: set_threshold(rng.normal(size=1000), 0.01),
        },
        rounds=10,
        warm_up=1,
    )
    for name, taken in times.items():
        record.figure(name, median(taken), "ms")
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
