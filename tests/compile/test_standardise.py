"""Mean and deviation of good maps at each place, against NumPy; measured together or apart."""

import numpy as np
import torch
from torch import nn

from compile.standardise import BASE, SHRINK, Standardised, measure_spread


class Doubled(nn.Module):
    """A model whose maps are twice the first channel of each hierarchy."""

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(2 * feature[:, 0] for feature in features)


def test_the_spread_is_that_of_all_pictures_measured_together_or_apart() -> None:
    rng = np.random.default_rng(5)
    maps = [rng.gamma(2, size=(40, 3, *grid)).astype(np.float32) for grid in ((6, 9), (3, 4))]
    parts = [measure_spread(Doubled(), [f[a:b] for f in maps]) for a, b in ((0, 7), (7, 40))]
    model = Standardised(Doubled(), parts)
    for i, feature in enumerate(maps):
        found = 2 * feature[:, 0].astype(np.float64)
        around = np.pad(found, ((0, 0), (1, 1), (1, 1)), mode="edge")
        height, width = found.shape[1:]
        near = np.stack([around[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
        mean, variance = near.mean((0, 1)), near.var((0, 1))
        deviation = np.sqrt((1 - SHRINK) * variance + SHRINK * variance.mean())
        np.testing.assert_allclose(model.mean(i), mean, rtol=1e-5)
        np.testing.assert_allclose(model.deviation(i), deviation, rtol=1e-4)
        want = np.maximum((found - mean) / deviation + BASE, 0)
        np.testing.assert_allclose(model([torch.from_numpy(f) for f in maps])[i], want, rtol=1e-4, atol=1e-4)
    low = model([torch.from_numpy(f - 100) for f in maps])
    assert all(float(found.max()) == 0 for found in low), "less than nothing is as good as it gets"
