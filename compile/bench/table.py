"""The results as text, CSV and JSON."""

from __future__ import annotations

import csv
import io

import numpy as np
from rich.console import Console
from rich.table import Table

from compile.bench.data import RULES
from compile.bench.figures import FIGURES, Estimate
from compile.bench.run import Results, Row
from compile.metrics import Difference, MaskRule

WIDTH = 170  # characters
RULE_WORDS: dict[MaskRule, str] = {
    "paper_nonzero": "masks: paper_nonzero (any non-zero value of the bilinearly resized mask)",
    "half": "masks: half (bilinearly resized, threshold 0.5)",
}
NOTE = (
    "exact figures at the map's resolution, no crop; AUPRO up to FPR 0.3; +- standard deviation over seeds of the fit, "
    "which all see the same pictures and painted defects; fit s: median over seeds, one thread per fit; ms: median of "
    "the float graph, ONNX Runtime, one thread; MB: peak of a process that runs this graph alone"
)


def print_results(console: Console, results: Results) -> None:
    """Print a table per data set and mask rule, and the means where there are several data sets."""
    wanted = results.wanted
    for data, (good, defective) in results.test.items():
        rows = [row for row in results.rows if row.data == data]
        seeds = f"{wanted.seeds} seed{'s' if wanted.seeds > 1 else ''}"
        learned = f", {wanted.learn_defects} defects learned from" if wanted.learn_defects else ""
        learned += f", one model of {len(wanted.data)} data sets" if wanted.together else ""
        title = f"{data}: {wanted.size} px, {good} good and {defective} defective test pictures, {seeds}{learned}"
        for rule in RULES:
            _print_table(console, f"{title}\n{RULE_WORDS[rule]}", rows, rule)
            if len(rows) > 1:
                _print_differences(console, f"{data}, {rule}", rows, rule)
        for remark in results.remarks[data]:
            console.print(f"{data}: {remark}", markup=False, highlight=False, soft_wrap=True)
    if len(results.test) > 1:
        for rule in RULES:
            _print_means(console, results, rule)
    console.print(NOTE, markup=False, highlight=False, soft_wrap=True)


def to_csv(results: Results, **more: str) -> str:
    """One line per data set, mask rule and method; `more` are further columns, the same in every line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{name}{end}" for name in FIGURES for end in ("", " spread", " difference", " low", " high")]
    costs = ["fit_s", "parameters", "macs", "latency_ms", "memory_mb"]
    writer.writerow(
        [
            "data",
            "size_px",
            "mask_rule",
            "method",
            "shots",
            "together",
            "seeds",
            "learned_defects",
            *figures,
            *costs,
            *more,
        ]
    )
    for row in results.rows:
        for rule in RULES:
            cells: list[object] = []
            for name in FIGURES:
                found, other = row.figures[rule].get(name), row.differences.get(rule, {}).get(name)
                numbers = [found.mean, found.spread] if found else [None, None]
                numbers += [other.value, other.low, other.high] if other else [None] * 3
                cells += ["" if number is None else f"{number:.5f}" for number in numbers]
            cost = row.cost
            cells += [f"{row.fit_s:.2f}", cost.parameters, cost.macs, f"{cost.latency_ms:.3f}", f"{cost.memory_mb:.1f}"]
            wanted = results.wanted
            setting = ["" if row.shots is None else row.shots, int(wanted.together), wanted.seeds, wanted.learn_defects]
            writer.writerow([row.data, wanted.size, rule, row.method, *setting, *cells, *more.values()])
    return text.getvalue()


def to_json(results: Results) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "size": results.wanted.size,
        "seeds": results.wanted.seeds,
        "learned_defects": results.wanted.learn_defects,
        "together": results.wanted.together,
        "test": {data: {"good": good, "defective": bad} for data, (good, bad) in results.test.items()},
        "remarks": results.remarks,
        "rows": [_row_json(row) for row in results.rows],
    }


def _row_json(row: Row) -> dict[str, object]:
    return {
        "data": row.data,
        "method": row.method,
        "shots": row.shots,
        "fit_s": row.fit_s,
        "cost": {name: getattr(row.cost, name) for name in ("parameters", "macs", "latency_ms", "memory_mb")},
        "figures": {
            rule: {name: {"mean": each.mean, "spread": each.spread} for name, each in found.items()}
            for rule, found in row.figures.items()
        },
        "differences": {
            rule: {name: {"value": d.value, "interval": [d.low, d.high]} for name, d in found.items()}
            for rule, found in row.differences.items()
        },
    }


def _print_table(console: Console, title: str, rows: list[Row], rule: MaskRule) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("method", *FIGURES, "fit s", "M params", "GMAC", "ms", "MB"):
        table.add_column(heading, justify="left" if heading == "method" else "right", overflow="fold")
    for row in rows:
        cost = row.cost
        table.add_row(
            row.label,
            *(_estimate(row.figures[rule].get(name)) for name in FIGURES),
            f"{row.fit_s:.1f}",
            f"{cost.parameters / 1e6:.2f}",
            f"{cost.macs / 1e9:.2f}",
            f"{cost.latency_ms:.1f}",
            f"{cost.memory_mb:.0f}",
        )
    console.print(table)


def _print_differences(console: Console, title: str, rows: list[Row], rule: MaskRule) -> None:
    table = Table(title=f"{title}: minus {rows[0].label}, 95 % paired bootstrap over pictures", title_justify="left")
    for heading in ("method", *FIGURES):
        table.add_column(heading, justify="left" if heading == "method" else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(row.label, *(_difference(row.differences[rule].get(name)) for name in FIGURES))
    console.print(table)


def _print_means(console: Console, results: Results, rule: MaskRule) -> None:
    table = Table(title=f"plain mean over {len(results.test)} data sets, {rule}", title_justify="left")
    for heading in ("method", *FIGURES):
        table.add_column(heading, justify="left" if heading == "method" else "right", overflow="fold")
    for label in dict.fromkeys(row.label for row in results.rows):
        rows = [row.figures[rule] for row in results.rows if row.label == label]
        means = [
            f"{np.mean([row[name].mean for row in rows]):.4f}" if all(name in row for row in rows) else "-"
            for name in FIGURES
        ]
        table.add_row(label, *means)
    console.print(table)


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.4f}" + ("" if found.spread is None else f"\n+-{found.spread:.4f}")


def _difference(found: Difference | None) -> str:
    return "-" if found is None else f"{found.value:+.4f}\n\\[{found.low:+.4f}, {found.high:+.4f}]"
