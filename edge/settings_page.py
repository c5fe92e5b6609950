"""docs/station.md, written from the settings themselves: `python -m edge.settings_page docs/station.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from edge.settings import Settings

HEAD = """\
# station.toml

Every key that `beltline run` and `beltline publish` understand. An unknown key, table or kind is an error that names
the nearest right one; `beltline run --check station.toml` explains a file without starting anything. Relative paths
count from the file's folder.

Written from the settings themselves by `python -m edge.settings_page docs/station.md`.
"""


def page() -> str:
    """The whole page, Markdown."""
    sections = [HEAD]
    for name, field in Settings.model_fields.items():
        sections += [_section(name, model, field) for model in _models(field.annotation)]
    return "\n".join(sections)


def _section(name: str, model: type[BaseModel], field: FieldInfo) -> str:
    kind = model.model_fields.get("kind")
    title = f"## [{name}]" + (f' kind = "{get_args(kind.annotation)[0]}"' if kind else "")
    summary = (model.__doc__ or field.title or "").strip().splitlines()[0]
    rows = [
        f"| `{key}` | {_default(value)} | {_words(value)} |"
        for key, value in model.model_fields.items()
        if key != "kind"
    ]
    table = ["| key | default | meaning |", "|---|---|---|", *rows] if rows else []
    return "\n".join([title, "", summary, "", *table, *([""] if rows else [])])


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "unset"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _words(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = f", {extra['unit']}" if isinstance(extra, dict) and "unit" in extra else ""
    return (field.description or field.title or "").replace("|", "or") + unit


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    options = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return [model for option in options for model in _models(option)]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
