"""CFM's mapping as published, and Mentor3AD's as the same with a mentor."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from compile.methods.mapping import BIG, Mapping, distance, loss


def count(mapping: Mapping) -> int:
    return sum(each.numel() for each in mapping.parameters())


def test_the_published_sizes() -> None:
    assert count(Mapping(768, 1152)) == 2_767_872
    assert count(Mapping(1152, 768)) == 2_767_488
    big = count(Mapping(768, 1152, layers=BIG)) + count(Mapping(1152, 768, layers=BIG))
    assert big / 1e6 == pytest.approx(12.92, abs=0.005)


def test_the_distance_is_that_of_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 9, generator=generator), 3 * torch.randn(50, 9, generator=generator)
    cosine = functional.cosine_similarity(a, b, dim=1)
    torch.testing.assert_close(distance(a, b), (2 - 2 * cosine).sqrt())
    assert distance(a, -a).min() == pytest.approx(2)
    assert float(loss(a, b)) == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_a_mentor_that_says_nothing_changes_nothing() -> None:
    torch.manual_seed(0)
    guided, alone = Mapping(12, 7, 16, mentor=5), Mapping(12, 7, 16)
    alone.load_state_dict({name: value for name, value in guided.state_dict().items() if "guide" not in name})
    seen = torch.randn(3, 20, 12)
    assert torch.equal(guided(seen, torch.zeros(3, 20, 5)), alone(seen))
    assert torch.equal(guided(seen), alone(seen))
    assert not torch.equal(guided(seen, torch.ones(3, 20, 5)), alone(seen))


def test_telling_before_and_after_enlarging_ranks_alike() -> None:
    """Rows of a coarse grid are a fraction of the work, and say as much: defects rank the same."""
    torch.manual_seed(0)
    mapping = Mapping(8, 6, 32)
    seen = functional.interpolate(torch.randn(1, 8, 4, 4), (14, 14), mode="bicubic")
    wanted = mapping(seen.movedim(1, 3)).movedim(3, 1).detach()
    wanted += 0.1 * functional.interpolate(torch.randn(1, 6, 7, 7), (14, 14), mode="bicubic")
    wanted[:, :, 3:6, 8:11] += 0.4 * torch.randn(1, 6, 1, 1)

    def told(size: int) -> torch.Tensor:
        rows, there = (functional.interpolate(each, (size, size), mode="bilinear") for each in (seen, wanted))
        found = distance(mapping(rows.movedim(1, 3)), there.movedim(1, 3)).detach()
        return functional.interpolate(found[:, None], (56, 56), mode="bilinear")[0, 0]

    fine, coarse = told(56), told(14)
    ranks = torch.stack([each.flatten().argsort().argsort().float() for each in (fine, coarse)])
    assert torch.corrcoef(ranks)[0, 1] > 0.9
    both = [set(each.flatten().topk(100).indices.tolist()) for each in (fine, coarse)]
    assert len(both[0] & both[1]) > 80
