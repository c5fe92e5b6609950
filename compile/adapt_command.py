"""`beltline adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compile.adapt import AdaptWish, adapt
from compile.backbones.adapted import AdaptMethod
from compile.methods.clip_states import GENERIC
from compile.terminal import ended_well, write_json
from edge.bundle import Background
from edge.console import console
from edge.scans.unit import Unit


def adapt_clip(  # noqa: PLR0917 - the command line
    auxiliary: Annotated[
        list[Path],
        typer.Argument(help="Labelled folders of other things: test, ground_truth; each named by what it shows."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write, for --backbone.")],
    clip: Annotated[
        str, typer.Option(help="CLIP as a folder or a name on the hub, for example openai/clip-vit-large-patch14-336.")
    ],
    method: Annotated[AdaptMethod, typer.Option(help="adaclip for pictures, mvp-pclip for scans.")] = "adaclip",
    word: Annotated[str, typer.Option(help="What will be inspected, in a word or a few.")] = GENERIC,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the pictures, a multiple of CLIP's patch.", show_default="518 or just below"),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Prompts that depend on the picture, too; the graph takes twice as long.")
    ] = False,
    passes: Annotated[
        int | None, typer.Option(help="Over all that is learned from.", show_default="the method's own")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures of a step.", show_default="the method's own")] = None,
    seed: Annotated[int, typer.Option(help="Fixes what is learned.")] = 0,
    unit: Annotated[
        Unit | None, typer.Option(help="Unit of scans: m or mm.", show_default="from what they span")
    ] = None,
    background: Annotated[
        Background, typer.Option(help="Of scans: belt, where a plane lies behind the part, or none.")
    ] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, no progress.")] = False,
) -> None:
    """Learn from labelled defects of other things what a defect looks like to CLIP; once, for many products."""
    wanted = AdaptWish(auxiliary, clip, output, method, word, size, dynamic, passes, batch, seed, unit, background)
    with ended_well(as_json=as_json) as tick:
        made = adapt(wanted, tick)
    learned = len(made.record.learned_from)
    if as_json:
        write_json({"folder": str(made.folder), "method": method, "learned_from": learned, "side": made.record.side})
    else:
        console().print(
            f"{made.folder}: {method}, learned from {learned} pictures of {', '.join(made.record.auxiliary)}. Use it: "
            f"beltline bench DATA --backbone {made.folder}",
            markup=False,
            soft_wrap=True,
        )
