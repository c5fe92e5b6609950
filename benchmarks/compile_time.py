"""How long `beltline compile` takes on 300 real images, and how large the bundle is.

    python -m benchmarks.compile_time [FOLDER]

By default the pictures of magnetic_tile in the folder that BELTLINE_DATA names.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import Record, budgets
from compile.job import Settings
from compile.methods.registry import DEFAULT_METHOD
from compile.pipeline import compile_data

IMAGES = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("BELTLINE_DATA", ".")) / "magnetic_tile" / "train" / "good"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    images = sorted(parser.parse_args().folder.iterdir())[:IMAGES]
    record, budget = Record("compile_time"), budgets("compile")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "good").mkdir()
        for image in images:
            (work / "good" / image.name).symlink_to(image.absolute())
        started_s = time.monotonic()
        compiled = compile_data(Settings(work / "good", work / "x.bundle", method=DEFAULT_METHOD))
        minutes = (time.monotonic() - started_s) / 60
        size_mb = compiled.bundle.path.stat().st_size / 1e6
    for step, seconds in compiled.evidence.seconds.items():
        record.figure(f"step {step}", seconds, "s")
    record.figure(f"compile of {len(images)} images", minutes, "minutes", budget["minutes_for_300_images"])
    record.figure("bundle", size_mb, "MB", budget["bundle_mb"])
    return record.finish()


if __name__ == "__main__":
    sys.exit(main())
