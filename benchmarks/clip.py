"""What AdaCLIP's constant text gives up; and, where there is a CLIP, the published figures of it and of MVP-PCLIP.

    python -m benchmarks.clip                        # a small CLIP of random weights on the shared sets
    python -m benchmarks.clip --clip openai/clip-vit-large-patch14-336 --auxiliary VISA/* --data MVTEC/*
    python -m benchmarks.clip --clip CLIP --method mvp-pclip --auxiliary REAL3D/* --data MVTEC3D/*

Each form of AdaCLIP is trained on the auxiliary sets and measured on the others, the mean over these; a set's word is
its folder's name. `full, code` is the published one, `static, mean` the one that ships. Of scans the figures of points
are over all valid points of a set, as published. It informs and does not gate.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import Record
from benchmarks.tiny_clip import write_tiny_clip
from compile.adapt import AdaptWish, load_auxiliary, load_views
from compile.anomaly_graph import MAP_LIMIT, AnomalyHead
from compile.backbones.clip import CLIP, find_clip, load_clip
from compile.methods.adaclip import AdaCLIP, Prompting
from compile.methods.adaclip_fit import Auxiliary, fit_adaclip, tokens_of
from compile.methods.adaclip_fuse import Fusion
from compile.methods.adaclip_graph import SIGMA, AdaHead, AdaTrunk
from compile.methods.descent import device
from compile.methods.mvp_pclip import MVPPCLIP, PIXELS, ViewModel, describe_object
from compile.methods.mvp_pclip_fit import LabelledViews, fit_mvp_pclip
from compile.metrics import auroc, average_precision, f1_max
from compile.terminal import bars

FORMS: tuple[tuple[Prompting, Fusion], ...] = (
    ("full", "code"),
    ("full", "mean"),
    ("image", "mean"),
    ("static", "mean"),
    ("static", "none"),
)
TINY_SIDE = 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("BELTLINE_DATA", "."))
    parser.add_argument("--clip", help="folder or name on the hub; by default a small one of random weights")
    parser.add_argument("--method", choices=["adaclip", "mvp-pclip"], default="adaclip")
    parser.add_argument("--auxiliary", nargs="+", type=Path, default=[shared / "cookie"], help="to train on")
    parser.add_argument("--data", nargs="+", type=Path, default=[shared / "magnetic_tile"], help="to measure on")
    parser.add_argument("--size", type=int, default=518, help="side of AdaCLIP's pictures")
    parser.add_argument("--passes", type=int, help="by default the method's own")
    parser.add_argument("--seeds", type=int, default=3)
    wanted = parser.parse_args()
    record = Record("clip" if wanted.method == "adaclip" else "clip_scans")
    with tempfile.TemporaryDirectory(prefix="beltline-clip-") as name:
        work = Path(name)
        source = find_clip(wanted.clip or write_tiny_clip(work / "tiny"))
        side = PIXELS if wanted.method == "mvp-pclip" else wanted.size if wanted.clip else TINY_SIDE
        known = wanted.clip or "random weights"
        clip = load_clip(source, side)
        if wanted.method == "adaclip":
            _adaclip(record, clip, wanted, work, known)
        else:
            _mvp_pclip(record, clip, wanted, work, known)
    return record.finish()


def _adaclip(record: Record, clip: CLIP, wanted: argparse.Namespace, work: Path, known: str) -> None:
    side = clip.image.grid * clip.image.patches.kernel_size[0]
    with bars(enabled=True) as tick:
        for place in ("learned", "tested"):
            (work / place).mkdir()
        learned, _ = load_auxiliary(wanted.auxiliary, side, work / "learned", tick)
        tested, _ = load_auxiliary(wanted.data, side, work / "tested", tick)
        for prompting, fusion in FORMS:
            found = []
            for seed in range(wanted.seeds):
                passes = {} if wanted.passes is None else {"passes": wanted.passes}
                model = fit_adaclip(
                    clip, learned, seed=seed, prompting=prompting, fusion=fusion, progress=tick, **passes
                )
                found.append(_measure(model.to(device()), clip, tested, side, fusion))
                model.to("cpu")
            _tell(record, f"{known}, {prompting}, {fusion}", found)


@torch.no_grad()
def _measure(model: AdaCLIP, clip: CLIP, tested: Auxiliary, side: int, fusion: Fusion) -> dict[str, float]:
    """Measure pictures one by one: their text may be their own."""
    trunk, sentences = AdaTrunk(model.eyes), tokens_of(clip, tested.words)
    sentences = type(sentences)(*(each.to(device()) for each in sentences))
    scores, maps, seconds = [], [], []
    pixels = min(MAP_LIMIT, side)
    mask = torch.ones(1, pixels, pixels, device=device())
    cached: dict[int, torch.Tensor] = {}
    for picture, word in zip(tested.pictures, tested.word_of.tolist(), strict=True):
        image = torch.from_numpy(np.array(picture))[None].to(device())
        started = time.perf_counter()
        table = cached.get(word)
        if table is None:
            table = model.table(sentences, torch.tensor([word], device=device()), image)[0]
            if model.prompting != "full":
                cached[word] = table
        head = AnomalyHead(
            AdaHead(table, clip.image.grid, side, fusion),
            [(side, side)],
            (pixels, pixels),
            smoothing=SIGMA * pixels,
            centre=0.5,
        ).to(device())
        score, heat = head(*trunk(image), mask)
        scores.append(float(score))
        seconds.append(time.perf_counter() - started)
        maps.append(heat[0].cpu().numpy())
    masks = _shrink(tested.masks, pixels)
    figures = [
        _figures(np.array(scores)[own], masks[own].any((1, 2)), np.stack(maps)[own].ravel(), masks[own].ravel())
        for own in (tested.word_of == word for word in range(len(tested.words)))
    ]
    mean = {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}
    return {**mean, "ms a picture": 1e3 * float(np.median(seconds))}


def _shrink(masks: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    at = ((np.arange(pixels) + 0.5) * masks.shape[1] / pixels).astype(int)
    return masks[:, at][:, :, at]


def _mvp_pclip(record: Record, clip: CLIP, wanted: argparse.Namespace, work: Path, known: str) -> None:
    sets = []
    with bars(enabled=True) as tick:
        for place, folders in (("learned", wanted.auxiliary), ("tested", wanted.data)):
            (work / place).mkdir()
            wish = AdaptWish(folders, "", work, method="mvp-pclip")
            sets.append(load_views(wish, work / place, tick)[0])
        learned, tested = sets
        for attention in ("causal", "unmasked"):
            found = []
            for seed in range(wanted.seeds):
                passes = {} if wanted.passes is None else {"passes": wanted.passes}
                model = fit_mvp_pclip(clip, learned, seed=seed, attention=attention, progress=tick, **passes)
                found.append(_measure_scans(model.to(device()), clip, tested))
                model.to("cpu")
            _tell(record, f"{known}, text {attention}", found)


@torch.no_grad()
def _measure_scans(model: MVPPCLIP, clip: CLIP, tested: LabelledViews) -> dict[str, float]:
    figures = []
    sentences = describe_object(clip, tested.words)
    tables = model.reader(type(sentences)(*(each.to(device()) for each in sentences)))
    for word, table in enumerate(tables):
        view = ViewModel(model.eyes, table)
        scores, maps, masks = [], [], []
        for i in np.flatnonzero(tested.word_of == word):
            index = torch.from_numpy(np.array(tested.index[i]))[None].to(device())
            shown = view.eyes(torch.from_numpy(np.array(tested.views[i]))[None].to(device()))
            seen = (index >= 0).any(1)[0].cpu().numpy()
            scores.append(float(view.whole(shown)))
            maps.append(view.points(shown, index)[0].cpu().numpy()[seen])
            masks.append(tested.masks[i][seen])
        defective = np.array([each.any() for each in masks])
        figures.append(_figures(np.array(scores), defective, np.concatenate(maps), np.concatenate(masks)))
    return {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}


def _figures(
    scores: NDArray[np.float64], defective: NDArray[Any], points: NDArray[np.float32], marked: NDArray[np.bool_]
) -> dict[str, float]:
    """AUROC, best F1 and average precision of pictures or objects, and of pixels or points."""
    found = {}
    for name, metric in {"AUROC": auroc, "max-F1": f1_max, "AP": average_precision}.items():
        found[f"whole {name}"] = metric(scores, defective)
        found[f"point {name}"] = metric(points, marked)
    return found


def _tell(record: Record, what: str, found: Sequence[dict[str, float]]) -> None:
    for name in found[0]:
        values = [each[name] for each in found]
        record.figure(f"{what}: {name}, mean of {len(values)} seeds", float(np.mean(values)), "")
        if len(values) > 1 and "ms" not in name:
            record.figure("  its standard deviation", float(np.std(values, ddof=1)), "")


if __name__ == "__main__":
    sys.exit(main())
