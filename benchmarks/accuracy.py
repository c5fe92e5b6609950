"""Accuracy of a bundle's graphs next to PatchCore and to the student's teacher, on labelled data sets, in one run.

    python -m benchmarks.accuracy [FOLDER ...]      # by default those of the folder that BELTLINE_DATA names

Each folder is compiled as `beltline compile` does it. PatchCore, with the taps of the student's teacher, and that
teacher get the same trunk, the same picture size and the same parts to learn from; they get no threshold. Labelled test
pictures influence nothing. The run fails where the INT8 graph gives up more image AUROC than budgets.toml allows, or
was left out of the bundle, where it falls further behind its teacher than it may, and where it is below PatchCore.
Last, the test parts pass a whole line at 600 a minute, whose belt
judges what truly escaped; a broken promise fails the run, too.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.line import LineRun, run_line
from benchmarks.record import RESULTS, budgets, machine
from calibration.threshold import DEFAULT_TARGET, ThresholdResult, overkill_interval, rank_for
from compile.backbones.choice import DEFAULT
from compile.bench.score import score_maps
from compile.evaluate import load_masks, test_row
from compile.evidence import Interval, TestRow
from compile.features import load_pictures
from compile.fitting import one_thread
from compile.job import Settings
from compile.methods.method import Samples, fit_alone
from compile.methods.patchcore import BANK, NEIGHBOURS, POOL
from compile.methods.registry import DEFAULT_METHOD, DEFAULT_TEACHER, find_method
from compile.metrics import Difference, paired_difference, paired_pixel_difference
from compile.onnx_session import open_session
from compile.parity import Scored, of_pictures, score_all
from compile.pipeline import Compiled, compile_data
from compile.pseudo_defects import paint_pictures, wanted
from compile.split_plan import plan_split

YARDSTICK = "patchcore-32"
OTHERS = (YARDSTICK, DEFAULT_TEACHER)
PATCHCORE = (
    f"{YARDSTICK}: the same trunk and parts, strides 8, 16 and 32; image score by eq. 7 ({NEIGHBOURS} neighbours); "
    f"greedy bank of {BANK:,} vectors, chosen among {POOL:,} random patches where there are more (the paper: among all)"
)
DATA_SETS = ("cookie", "magnetic_tile")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A minus b on the same pictures."""

    what: str
    image_auroc: Difference
    pixel_auroc: Difference
    aupro: Difference


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    size: int
    parts: int
    rows: list[TestRow]
    comparisons: list[Comparison]
    thresholds: dict[str, ThresholdResult]
    int8_kept: bool
    parity: float  # largest relative score difference, torch against float ONNX
    line: LineRun


def main() -> int:
    arguments = _arguments()
    console = Console(record=True, width=170, file=sys.stdout)
    console.print(f"accuracy, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC")
    console.print(machine(), highlight=False)
    results = []
    for folder in arguments.data:
        results.append(run(folder, arguments))
        _print(console, results[-1])
    budget = budgets("compile")["auroc_given_up_int8"]
    verdict = [_decide(result, budget) for result in results]
    for result, (good, words) in zip(results, verdict, strict=True):
        console.print(f"{'PASS' if good else 'FAIL'}  {result.name}: {words}", highlight=False)
        console.print(_found_words(result), highlight=False)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "accuracy.txt").write_text(console.export_text(), encoding="utf-8")
    (arguments.output / "accuracy.csv").write_text(_csv(results), encoding="utf-8")
    return 0 if all(good for good, _ in verdict) else 1


def run(folder: Path, arguments: argparse.Namespace) -> Result:
    """Compile one data set, score its test pictures with every graph and with PatchCore, and compare."""
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as work:
        settings = Settings(
            folder,
            Path(work) / f"{folder.name}.bundle",
            size=arguments.size,
            target_false_reject=arguments.target,
            seed=arguments.seed,
            method=DEFAULT_METHOD,
            fit_steps=arguments.fit_steps,
        )
        compiled = compile_data(settings)
        bundle, evidence = compiled.bundle, compiled.evidence
        spec, side = bundle.manifest.pictures, bundle.manifest.map_height
        good, kept, _ = load_pictures(evidence.data.good, spec, Path(work) / "good.bin")
        test, present, _ = load_pictures([t.path for t in evidence.data.test], spec, Path(work) / "test.bin")
        images = [evidence.data.test[i] for i in present]
        masks = load_masks(images, side)
        defective = np.array([image.defective for image in images])
        scored: dict[str, Scored] = {}
        for name, graph in bundle.manifest.graphs.items():
            session = open_session(bundle.read(graph.file), exact=name == "trt")
            scored[name] = score_all(session, of_pictures(test, side))
        learned = _learned(good, evidence.data.groups[kept], settings)
        scored |= {name: _fitted(name, compiled, learned, test, settings) for name in OTHERS}
        line = run_line(settings.output, images, Path(work), arguments.seed)
    thresholds: dict[str, ThresholdResult] = {name: evidence.thresholds[name] for name in bundle.manifest.graphs}
    rows = [row for row in evidence.test if row.graph == "torch"]
    limits = {name: limit.value for name, limit in thresholds.items()}
    rows += [test_row(name, each, images, masks, limits.get(name, math.nan)) for name, each in scored.items()]
    graphs = list(bundle.manifest.graphs)
    pairs: list[tuple[str, str]] = [(name, "float") for name in graphs if name != "float"]
    pairs += [(name, other) for other in OTHERS for name in graphs]
    comparisons = [
        Comparison(
            f"{a} - {b}",
            paired_difference(scored[a].scores, scored[b].scores, defective),
            *paired_pixel_difference(list(scored[a].maps), list(scored[b].maps), masks),
        )
        for a, b in pairs
    ]
    return Result(
        folder.name,
        spec.height,
        evidence.data.parts,
        rows,
        comparisons,
        thresholds,
        "int8" in scored,
        float(evidence.float_parity["score_error_relative"]),
        line,
    )


def _learned(good: NDArray[np.uint8], groups: NDArray[np.int64], settings: Settings) -> NDArray[np.uint8]:
    """Pictures of the very parts that the shipped head learned from."""
    plan = plan_split(groups, settings.target_false_reject or DEFAULT_TARGET, settings.seed)
    return good if plan.cross_fitted else good[plan.folds[0][0]]


def _fitted(
    name: str, compiled: Compiled, learned: NDArray[np.uint8], test: NDArray[np.uint8], settings: Settings
) -> Scored:
    """Fit another method on these pictures, and score the test pictures."""
    method, side = find_method(name), compiled.bundle.manifest.map_height
    trunk = DEFAULT.build(method.levels, compiled.bundle.manifest.pictures.height)
    samples = Samples(_maps(trunk, learned))
    if method.painted:
        pictures = np.empty((wanted(len(learned)), *learned.shape[1:]), np.uint8)
        covered, _ = paint_pictures(learned, pictures, settings.seed)
        samples = replace(samples, painted=_maps(trunk, pictures), covered=covered)
    with one_thread():
        head = method.head(fit_alone(method, samples, settings.seed, None, None), samples.good, (side, side))
    return score_maps(head, _maps(trunk, test))


@torch.inference_mode()
def _maps(trunk: nn.Module, pictures: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    found = [trunk(torch.from_numpy(np.array(pictures[i : i + 8]))) for i in range(0, len(pictures), 8)]
    return [torch.cat(level).numpy() for level in zip(*found, strict=True)]


def _decide(result: Result, budget: float) -> tuple[bool, str]:
    gained = {c.what: c.image_auroc.value for c in result.comparisons}
    words, good = [], True
    if result.int8_kept:
        lead, behind = gained[f"int8 - {YARDSTICK}"], -gained[f"int8 - {DEFAULT_TEACHER}"]
        loss, most = -gained["int8 - float"], budgets("methods")["student_behind_teacher"]
        words = [
            f"image AUROC of INT8 above {YARDSTICK}'s {lead:+.4f}, at least 0",
            f"behind its teacher's {behind:+.4f}, at most {most}",
            f"given up by INT8 {loss:+.4f}, budget {budget}",
        ]
        good = lead >= 0 and behind <= most and loss <= budget
    else:
        words.append(f"the INT8 graph was left out of the bundle (budget: image AUROC given up at most {budget})")
        good = False
    if broken := result.line.counts.broken:
        words.append(f"the line broke a promise: {', '.join(broken)}")
        good = False
    return good, "; ".join(words)


def _found_words(result: Result) -> str:
    """What the line found at its default threshold, which is no gate: a data set's defects are what they are."""
    counts, limit = result.line.counts, result.thresholds[result.line.graph]
    low, high = _expected_overkill(limit, counts.good)
    found = counts.defective - len(counts.escapes)
    return (
        f"INFO  {result.name}: the line found {found} of {counts.defective} defects "
        f"({found / max(1, counts.defective):.0%}), overkill {len(counts.overkill)} of {counts.good}, "
        f"expected {low}..{high}"
    )


def _expected_overkill(limit: ThresholdResult, good: int) -> tuple[int, int]:
    rank = limit.rank or min(rank_for(limit.parts, limit.target_false_reject), limit.parts)
    return overkill_interval(limit.parts, rank, good)


def _print(console: Console, result: Result) -> None:
    table = Table(title=f"{result.name}: {result.size} px, {result.parts} good parts", title_justify="left")
    for heading in ("graph", "image AUROC", "pixel AUROC", "AUPRO 0.3", "overkill", "expected", "escapes"):
        table.add_column(heading)
    for row in result.rows:
        figures = [_figure(found) for found in (row.image_auroc, row.pixel_auroc, row.aupro)]
        limit = result.thresholds.get("float" if row.graph == "torch" else row.graph)
        if limit is None:
            table.add_row(row.graph, *figures, "-", "-", "-")
            continue
        low, high = _expected_overkill(limit, row.good)
        table.add_row(
            row.graph,
            *figures,
            f"{row.good_rejected}/{row.good}",
            f"{low}..{high}",
            f"{row.defective_accepted}/{row.defective}",
        )
    console.print(table)
    console.print("expected: 99 % beta-binomial interval of overkill, were each test picture a part of its own")
    console.print(PATCHCORE, highlight=False)
    for name, limit in result.thresholds.items():
        flag = f" [{limit.flagged}]" if limit.flagged else ""
        console.print(f"threshold {name} {limit.value:.5g}: {limit.rule}{flag}", highlight=False, markup=False)
    console.print(f"torch against float ONNX: scores differ by at most {result.parity:.2g} relative")
    console.print(_line_words(result.line), highlight=False)
    differences = Table(title="differences, 95 % paired bootstrap over pictures", title_justify="left")
    for heading in ("", "image AUROC", "pixel AUROC", "AUPRO 0.3"):
        differences.add_column(heading)
    for each in result.comparisons:
        differences.add_row(each.what, *(_difference(d) for d in (each.image_auroc, each.pixel_auroc, each.aupro)))
    console.print(differences)


def _line_words(line: LineRun) -> str:
    counts = line.counts
    return (
        f"the line, {line.graph}, {counts.parts} parts at 600/min: escapes {len(counts.escapes)}/{counts.defective}, "
        f"overkill {len(counts.overkill)}/{counts.good}, FAULT {counts.faults}, late {counts.late}, trigger to verdict "
        f"p50 {line.p50_ms:.1f} ms, p99 {line.p99_ms:.1f} ms"
    )


def _figure(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _difference(found: Difference) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _csv(results: list[Result]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{name}{end}" for name in ("image_auroc", "pixel_auroc", "aupro") for end in ("", "_low", "_high")]
    counts = ["good_rejected", "good", "defective_accepted", "defective"]
    head = ["data", "size_px", "what", *figures, *counts, "date", "machine"]
    writer.writerow(head)
    stamp = [f"{datetime.now(timezone.utc):%Y-%m-%d}", machine()]
    for result in results:
        for row in result.rows:
            cells: list[object] = []
            for found in (row.image_auroc, row.pixel_auroc, row.aupro):
                cells += ["", "", ""] if found is None else [f"{x:.5f}" for x in found]
            cells += [getattr(row, name) for name in counts]
            writer.writerow([result.name, result.size, row.graph, *cells, *stamp])
        for each in result.comparisons:
            cells = [
                f"{x:.5f}" for d in (each.image_auroc, each.pixel_auroc, each.aupro) for x in (d.value, d.low, d.high)
            ]
            writer.writerow([result.name, result.size, each.what, *cells, *[""] * len(counts), *stamp])
        run = result.line.counts
        cells = [len(run.overkill), run.good, len(run.escapes), run.defective]
        writer.writerow([result.name, result.size, f"line {result.line.graph}", *[""] * len(figures), *cells, *stamp])
    return text.getvalue()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("BELTLINE_DATA", "."))
    parser.add_argument("data", nargs="*", type=Path, default=[shared / name for name in DATA_SETS])
    parser.add_argument("--size", type=int, default=320, help="side of the graph's input, pixels")
    parser.add_argument("--target", type=float, help="false-reject target; by default that of `beltline compile`")
    parser.add_argument("--fit-steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
