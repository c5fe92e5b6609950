"""`beltline bench`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compile.backbones.choice import BACKBONES, DEFAULT, Backbone, find_backbone
from compile.bench.page import render_page
from compile.bench.run import Results, Wanted, run_bench
from compile.bench.settings import able
from compile.bench.table import WIDTH, print_results, to_csv, to_json
from compile.job import WORK
from compile.methods.registry import DEFAULT_METHOD, METHODS, SCAN_METHODS, methods_of
from compile.terminal import ended_well, write_json
from compile.wishes import WishError
from edge.bundle import Background
from edge.scans.unit import Unit


def bench(  # noqa: PLR0917 - the command line
    data: Annotated[list[Path], typer.Argument(help="Folders of MVTec style: train/good, test, ground_truth.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Names with commas between, the first compared with: {', '.join(METHODS)}; {DEFAULT_METHOD}, or "
            f"varad taught by another; for scans: {', '.join(SCAN_METHODS)}.",
            show_default="all that backbone and setting take, but for those for scans",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the graph's square input, a multiple of 32 (DINOv2: 14).", show_default="256 (DINOv2: 392)"
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help=BACKBONES)] = DEFAULT.name,
    seeds: Annotated[int, typer.Option(help="Fits of each method on each data set.")] = 1,
    unit: Annotated[
        Unit | None, typer.Option(help="Unit of scans: m or mm.", show_default="from what they span")
    ] = None,
    background: Annotated[
        Background, typer.Option(help="Of scans: belt, where a plane lies behind the part, or none.")
    ] = "none",
    learn_defects: Annotated[
        int,
        typer.Option(help="Labelled defects to learn from, for methods that do; they leave the test of all."),
    ] = 0,
    together: Annotated[
        bool, typer.Option("--together", help="One model of all data sets, measured on each (multi-class).")
    ] = False,
    shots: Annotated[
        str,
        typer.Option(
            help="Fit on so few good pictures, drawn by the seed, for example 1,4; 0 for none (zero-shot).",
            show_default="all",
        ),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for bench.txt, bench.csv, maps.html.")] = Path(
        "out/bench"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, no progress.")] = False,
) -> None:
    """Compare methods on labelled data sets: the table that papers print, and their maps."""
    work = output / f"bench{WORK}"
    with ended_well(as_json=as_json, work=work) as tick:
        trunk = find_backbone(backbone)
        counts = _counts(shots)
        names = (
            [*able(methods_of(trunk), together=together, shots=counts), *_shipped(trunk, together or counts)]
            if methods is None
            else [name.strip() for name in methods.split(",") if name.strip()]
        )
        output.mkdir(parents=True, exist_ok=True)  # before the hours of work
        side = trunk.usual_side if size is None else size
        wanted = Wanted(
            data,
            names,
            side,
            seeds,
            backbone=backbone,
            learn_defects=learn_defects,
            together=together,
            shots=counts,
            unit=unit,
            background=background,
            work=work,
        )
        results = run_bench(wanted, tick)
    console = Console(record=True, width=WIDTH, file=io.StringIO() if as_json else sys.stdout)
    print_results(console, results)
    files = write_results(results, output, console.export_text())
    if as_json:
        write_json({**to_json(results), "files": [str(file) for file in files]})
    else:
        console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True, highlight=False, markup=False)


def _shipped(trunk: Backbone, setting: object) -> list[str]:
    """Name what is compiled by default, where it can be compared: on its trunk, one model per product, all pictures."""
    return [] if setting or trunk.family != "lite" else [DEFAULT_METHOD]


def _counts(shots: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(each) for each in shots.split(",") if each.strip()))
    except ValueError as error:
        raise WishError(f"--shots {shots!r}: give whole numbers with commas between, for example 1,4.") from error


def write_results(results: Results, folder: Path, text: str) -> list[Path]:
    """Write the table as text and CSV, and the page of maps."""
    contents = {
        "bench.txt": text,
        "bench.csv": to_csv(results),
        "maps.html": render_page(results.shown, results.wanted.size),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]
