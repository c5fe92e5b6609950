"""`beltline keys`: make a pair that signs bundles, and show whose bundles a box accepts."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edge.console import console
from edge.keys import listed_keys, new_key
from edge.settings import load_settings
from edge.signature import KEY_FOLDER, short

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

keys = typer.Typer(help="Make the keys that sign bundles, and show those that a box accepts.")


@keys.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The private key to make, for example workshop.key.")],
    json: Json = False,
) -> None:
    """Make a private key, for its owner alone, and beside it the public key for the boxes, NAME.pub."""
    public, key = new_key(file)
    if json:
        console().out(json_format.dumps({"private": str(file), "public": str(public), "key": key}))
        return
    console().print(
        f"{file}: the private key {short(key)}. Keep it: who has it can sign for you.\n"
        f"{public}: the public key. Copy it into {KEY_FOLDER} of each box that accepts your bundles.",
        markup=False,
    )


@keys.command("list")
def list_keys(
    where: Annotated[
        Path, typer.Argument(metavar="[FOLDER|STATION.toml]", help="The key folder, or the station that names it.")
    ] = KEY_FOLDER,
    json: Json = False,
) -> None:
    """Show whose bundles this box accepts; exit code 1 when a key file is of no use."""
    folder = load_settings(where).bundle.keys if where.is_file() else where
    found = listed_keys(folder)
    if json:
        console().out(json_format.dumps([key._asdict() for key in found]))
    else:
        table = Table("", "name", "key", title=str(folder), box=None)
        for name, key, problem in found:
            table.add_row("[red]problem[/]" if problem else "[green]ok[/]", name, escape(problem or key))
        console().print(table if found else f"{folder}: no keys, so no signed bundle is accepted.")
    if any(key.problem for key in found):
        raise typer.Exit(1)
