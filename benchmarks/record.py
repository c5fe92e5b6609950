"""What every benchmark shares: the budgets, the machine in words, and the table that is kept."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def budgets(section: str) -> dict[str, float]:
    """One table of budgets.toml."""
    with (HERE / "budgets.toml").open("rb") as stream:
        table: dict[str, float] = tomllib.load(stream)[section]
    return table


def machine() -> str:
    """Processor, Python and package versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("beltline", "torch", "onnx", "onnxruntime", "numpy"))
    return f"{names[0] if names else platform.machine()} x{len(names)}; Python {platform.python_version()}, {packages}"


@dataclass
class Record:
    """A table of figures against their budgets; written to benchmarks/results/NAME.txt."""

    name: str
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # below the machine's line

    def figure(
        self, what: str, value: float, unit: str, budget: float | None = None, *, least: float | None = None
    ) -> None:
        """Add one figure; above its budget, or below what it must at least be, the benchmark fails."""
        limit, verdict = "", ""
        if budget is not None or least is not None:
            limit = f"{budget:g}" if least is None else f"at least {least:g}"
            met = value <= budget if budget is not None else least is not None and value >= least
            verdict = "met" if met else "MISSED"
            if not met:
                self.failures.append(f"{what}: {value:.4g} {unit}, budget {limit}")
        self.rows.append((what, f"{value:.4g} {unit}", limit, verdict))

    def words(self, what: str, measured: str) -> None:
        """Add a row of several figures, or of none."""
        self.rows.append((what, measured, "", ""))

    def finish(self) -> int:
        """Print and keep the table. Returns the exit code."""
        console = Console(record=True, width=120, file=sys.stdout, highlight=False)
        console.print(f"{self.name}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC\n{machine()}")
        for remark in self.remarks:
            console.print(remark)
        table = Table("figure", "measured", "budget", "")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for failure in self.failures:
            console.print(f"FAIL  {failure}")
        if not self.failures:
            console.print("PASS  every budget met")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.txt").write_text(console.export_text(), encoding="utf-8")
        return 1 if self.failures else 0


def interleaved_ms(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 60, warm_up: int = 5
) -> dict[str, list[float]]:
    """Time each call in turn, round after round, so that a drifting machine touches all alike. ms, by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            start_ns = time.perf_counter_ns()
            call()
            if number >= warm_up:
                times[name].append((time.perf_counter_ns() - start_ns) / 1e6)
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)
