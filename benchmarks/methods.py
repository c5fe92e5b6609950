"""The methods side by side on labelled data sets, as papers print it: `beltline bench` with the machine in the file.

    python -m benchmarks.methods [FOLDER ...]      # by default the labelled ones of the folder that BELTLINE_DATA names

Pictures: every method of the registry and what is compiled by default, compared with PatchCore on the taps of
INP-Former++. Scans with pictures: pictures alone, scans alone and both. Three seeds. It ends with what the methods are
to reach, and fails where they do not; `python -m benchmarks.accuracy` gates what is shipped. Stopped, it goes on with
the same command. Last GRNR on 1 and on 4 good pictures of each set, drawn ten times, 4 minus 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from benchmarks.bars import YARDSTICK, measured_bars
from benchmarks.record import RESULTS, machine
from compile.bench.page import render_page
from compile.bench.run import Wanted, run_bench
from compile.bench.table import WIDTH, print_results, to_csv
from compile.methods.registry import DEFAULT_METHOD, METHODS, SCAN_METHODS
from compile.terminal import bars
from compile.work import work_path

DRAWS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("BELTLINE_DATA", "."))
    parser.add_argument("data", nargs="*", type=Path, default=labelled(shared) + scanned(shared))
    parser.add_argument("--methods", help="with commas between; by default all that fit")
    parser.add_argument("--size", type=int, help="side of the graph's input, pixels; by default 320, of scans 256")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--maps", type=Path, default=Path("out/bench"), help="folder for the page of maps")
    wanted = parser.parse_args()
    scans = [folder for folder in wanted.data if (folder / "train" / "good" / "xyz").is_dir()]
    pictures = [folder for folder in wanted.data if folder not in scans]
    tables = {
        "methods": (pictures, 320, [YARDSTICK, *(name for name in METHODS if name != YARDSTICK), DEFAULT_METHOD]),
        "scan_methods": (scans, 256, ["patchcore", *SCAN_METHODS]),
    }
    missed = False
    for name, (folders, size, known) in tables.items():
        methods = wanted.methods.split(",") if wanted.methods else known
        if folders:
            work = work_path(wanted.maps / name)
            asked = Wanted(folders, methods, wanted.size or size, wanted.seeds, work=work)
            missed |= _compare(name, asked, wanted.output, wanted.maps)
    if pictures and not wanted.methods:
        work = work_path(wanted.maps / "few_shot")
        asked = Wanted(pictures, ["grnr"], wanted.size or 320, DRAWS, shots=[1, 4], work=work)
        _compare("few_shot", asked, wanted.output, wanted.maps)
    return int(missed)


def _compare(name: str, wanted: Wanted, output: Path, maps: Path) -> bool:
    """Keep the table; whether something was missed."""
    for folder in (output, maps):
        folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    with bars(enabled=True) as tick:
        results = run_bench(wanted, tick)
    console = Console(record=True, width=WIDTH, file=sys.stdout, highlight=False)
    console.print(f"{name}, {now:%Y-%m-%d %H:%M} UTC\n{machine()}")
    print_results(console, results)
    bars_ = measured_bars(results)
    for bar in bars_:
        console.print(str(bar))
    (output / f"{name}.txt").write_text(console.export_text(), encoding="utf-8")
    table = to_csv(results, date=f"{now:%Y-%m-%d}", machine=machine())
    (output / f"{name}.csv").write_text(table, encoding="utf-8")
    (maps / f"{name}.html").write_text(render_page(results.shown, wanted.size), encoding="utf-8")
    return not all(bar.met for bar in bars_)


def labelled(folder: Path) -> list[Path]:
    """Data sets with good test pictures and masks."""
    return sorted(each.parent for each in folder.glob("*/ground_truth") if (each.parent / "test" / "good").is_dir())


def scanned(folder: Path) -> list[Path]:
    """Data sets of scans with good test scans."""
    return sorted(each.parents[2] for each in folder.glob("*/test/good/xyz"))


if __name__ == "__main__":
    sys.exit(main())
