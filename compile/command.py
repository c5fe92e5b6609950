"""`beltline compile`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compile.backbone import LITES
from compile.backbones.choice import BACKBONES, DEFAULT
from compile.evidence import Evidence, per_class
from compile.job import Settings
from compile.methods.registry import DEFAULT_ON_BOTH, DEFAULT_ON_SCANS, DEFAULT_TEACHER, METHODS, SCAN_METHODS, TAUGHT
from compile.pipeline import Compiled, compile_data
from compile.report import GRAPH_NAMES
from compile.scan_files import find_scans
from compile.sign import sign_bundle
from compile.terminal import ended_well, write_json
from compile.work import work_path
from edge.bundle import Background, Bundle
from edge.keys import read_private
from edge.scans.unit import Unit
from edge.signature import short, signer


def compile_bundle(  # noqa: PLR0917 - the command line
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of good images or scans: flat, or MVTec style with train/good. Several: one class each, named "
            "by it."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write, NAME.bundle.")],
    size: Annotated[
        int | None,
        typer.Option(help="Side of the graph's square input, a multiple of 32 (DINOv2: 14).", show_default="chosen"),
    ] = None,
    smallest_defect: Annotated[
        float | None, typer.Option(help="Diameter of the smallest defect to find, source pixels.")
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Time for the graph on one thread of this machine, ms.")
    ] = None,
    target_false_reject: Annotated[
        float | None,
        typer.Option(help="Share of good parts that may be rejected.", show_default="0.01; more below 299 good parts"),
    ] = None,
    tail_model: Annotated[
        bool,
        typer.Option(
            "--tail-model", help="Extrapolate the threshold where the good parts are too few for the target; labelled."
        ),
    ] = False,
    group_by: Annotated[
        str,
        typer.Option(help="Which images show one part: near-duplicates, folder, or a regular expression on the name."),
    ] = "near-duplicates",
    seed: Annotated[int, typer.Option(help="Fixes splits and fit.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the product.", show_default="the bundle's file name")] = "",
    version: Annotated[str, typer.Option(help="Version of the product's model.")] = "1",
    method: Annotated[
        str | None,
        typer.Option(
            help=f"How anomalies are found: {', '.join(METHODS)}; in scans: {', '.join(SCAN_METHODS)}.",
            show_default=f"varad, taught by {DEFAULT_TEACHER}; of scans {DEFAULT_ON_BOTH}, without pictures "
            f"{DEFAULT_ON_SCANS}",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Method that teaches VarAD what it knows; the student alone ships. `none` for VarAD alone, in a "
            "third of the time.",
            show_default=DEFAULT_TEACHER,
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help=BACKBONES)] = DEFAULT.name,
    unit: Annotated[
        Unit | None, typer.Option(help="Unit of scans: m or mm.", show_default="from what they span")
    ] = None,
    background: Annotated[
        Background, typer.Option(help="Of scans: belt, where a plane lies behind the part, or none.")
    ] = "none",
    learn_defects: Annotated[
        int,
        typer.Option(
            help="Labelled test defects with masks (of each class) to learn from, drawn by --seed; they leave the test."
        ),
    ] = 0,
    fit_steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps of each fit, at most (few pictures get fewer); the time is proportional.",
            show_default="the method's own",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(help="Private key to sign the bundle with, see `beltline keys new`.", show_default="unsigned"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, no progress.")] = False,
) -> None:
    """Turn a folder of good parts into a bundle: read, fit, export, quantise, prove, write."""
    private = read_private(sign) if sign else None
    settings = Settings(
        data[0],
        output,
        size=size,
        smallest_defect_px=smallest_defect,
        budget_ms=budget_ms,
        target_false_reject=target_false_reject,
        tail_model=tail_model,
        seed=seed,
        group_by=group_by,
        name=name,
        version=version,
        method=choose_method(method, teacher, backbone, data),
        fit_steps=fit_steps,
        backbone=backbone,
        learn_defects=learn_defects,
        unit=unit,
        background=background,
        more=tuple(data[1:]),
    )
    with ended_well(as_json=as_json, work=work_path(output)) as tick:
        compiled = compile_data(settings, tick)
        if private:
            compiled = replace(compiled, bundle=sign_bundle(output, private))
    summary = summarise(compiled)
    if as_json:
        write_json(summary)
    else:
        _print(compiled)


def choose_method(method: str | None, teacher: str | None, backbone: str, data: Sequence[Path]) -> str:
    """Name the method of these options: where nothing else is said one for scans, or a student where it can be."""
    if teacher not in {None, "none"} and method not in {None, "varad"}:
        raise typer.BadParameter(f"--method {method}: varad alone can be taught; leave --method or --teacher out.")
    if (
        method is None
        and teacher is None
        and (found := [find_scans(folder) for folder in data if folder.is_dir()])
        and all(found)
    ):
        pictured = all(sample.picture for each in found if each for sample in each.good)
        return DEFAULT_ON_BOTH if pictured else DEFAULT_ON_SCANS
    if teacher is None:
        taught = method is None and backbone in LITES and len(data) == 1
        teacher = DEFAULT_TEACHER if taught else "none"
    return (method or "varad") if teacher == "none" else f"{TAUGHT}{teacher}"


def summarise(compiled: Compiled) -> dict[str, object]:
    """What `--json` prints."""
    bundle, found, classes = compiled.bundle, compiled.evidence, compiled.classes
    return {
        "bundle": str(bundle.path),
        "id": bundle.id,
        "signed_by": signer(bundle),
        "bytes": bundle.path.stat().st_size,
        "report": str(compiled.report),
        "image_size": {"side": found.size.size, "why": found.size.explanation},
        "classes": bundle.manifest.classes,
        "good_images": sum(len(each.data.good) for each in classes),
        "good_parts": sum(each.data.parts for each in classes),
        "skipped": [{"file": str(item.path), "reason": item.reason} for each in classes for item in each.data.skipped],
        "remarks": [f"{each.label}{remark}" for each in classes for remark in each.data.remarks],
        "thresholds": json.loads(bundle.read("threshold.json")),
        "method": bundle.manifest.method,
        "fit_steps": found.fit_steps,
        "defects": per_class(classes, Evidence.defects_json),
        "parity": per_class(classes, Evidence.parity_json),
        "graph_ms": found.graph_ms,
        "seconds": found.seconds,
        "warnings": found.warnings,
    }


def _print(compiled: Compiled) -> None:
    console = Console(highlight=False, soft_wrap=True)
    bundle, found = compiled.bundle, compiled.evidence
    console.print(found.size.explanation, markup=False)
    for each in compiled.classes:
        _print_class(console, each)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(
        f"{bundle.path}: {found.method}, {bundle.path.stat().st_size / 2**20:.1f} MB, "
        f"graphs {', '.join(bundle.manifest.graphs)}, id {bundle.id[:12]}, {_signed(bundle)}; "
        f"report in {compiled.report}",
        markup=False,
    )


def _signed(bundle: Bundle) -> str:
    key = signer(bundle)
    return f"signed by key {short(key)}" if key else "unsigned"


def _print_class(console: Console, found: Evidence) -> None:
    if found.class_name:
        console.print(f"Class {found.class_name}:", markup=False)
    for item in found.data.skipped:
        console.print(f"skipped {item.path}: {item.reason}", markup=False)
    for remark in found.data.remarks:
        console.print(remark, markup=False)
    for row in found.test:
        if row.image_auroc:
            console.print(
                f"test, {row.graph}: image AUROC {row.image_auroc.value:.4f} "
                f"({row.image_auroc.low:.4f} to {row.image_auroc.high:.4f}), "
                f"{row.good_rejected} of {row.good} good rejected, "
                f"{row.defective_accepted} of {row.defective} defective accepted",
                markup=False,
            )
    console.print(found.promise, markup=False)
    for name, each in found.defects_found().items():
        console.print(
            f"{GRAPH_NAMES[name]}: of {each.of} {found.other_name} the threshold finds {each.found}", markup=False
        )
