"""station.toml: everything a station must be told, checked when it is read.

Every table is a closed set of keys; a wrong one is answered with the nearest right one. Relative paths count from the
folder of the file, so that a station can be tried wherever its files lie.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from edge.bundle import SCORE_LIMIT
from edge.errors import BeltlineError
from edge.journal import KEEP
from edge.signature import KEY_FOLDER
from firmware_bridge.link.settings import LinkSettings
from firmware_bridge.modbus.settings import ModbusSettings
from firmware_bridge.mqtt.settings import FileName, MqttSettings, TopicLevel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class SettingsError(BeltlineError):
    """station.toml cannot be used. The message names the file, the key, the value and the next step."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Station(Table):
    """Where this station stands: the first levels of every MQTT topic."""

    site: TopicLevel = Field("site", title="Site", description="plant or building")
    line: TopicLevel = Field("line", title="Line", description="production line")
    name: TopicLevel = Field("station", title="Station", description="this station on the line")


class BundleChoice(Table):
    """What is inspected, and by which rendering of the model."""

    path: FileName | None = Field(
        None,
        title="Bundle",
        description="a .bundle file or folder to run as it is; unset = what `beltline install` put in place",
    )
    keys: FileName = Field(
        KEY_FOLDER, title="Keys", description="folder of the public keys (NAME.pub) whose bundles are accepted"
    )
    allow_unsigned: bool = Field(
        False, title="Allow unsigned", description="accept a bundle that carries no signature at all"
    )
    graph: Literal["auto", "float", "int8"] = Field(
        "auto",
        title="Graph",
        description="auto = the graph or engine chosen at the install by its speed here; for a `path` a reduced graph, "
        "else float. Named = that one, on the processor",
    )
    recipe: str = Field(
        "default", pattern=r"^[^\p{Cc}]{1,100}$", title="Recipe", description="name that goes into every verdict"
    )
    class_name: str | None = Field(
        None,
        title="Class",
        description="which of its classes this station inspects; only for a bundle that was made for several",
    )
    threshold: float | None = Field(
        None,
        ge=-SCORE_LIMIT,
        le=SCORE_LIMIT,
        allow_inf_nan=False,
        title="Threshold",
        description="reject above this score; unset = the bundle's own threshold for the graph",
    )
    threads: int = Field(1, ge=1, le=64, title="Threads", description="processor threads that score one frame")
    trial_parts: int = Field(
        100,
        ge=1,
        le=1_000_000,
        title="Trial",
        description="parts that a newly installed bundle must judge without fault, else the former one comes back",
    )


class FolderSource(Table):
    """Each file of a folder is the picture or the scan of one part, in the order of names: part n sees file n."""

    kind: Literal["folder"]
    path: FileName = Field(
        title="Folder",
        description="folder of JPEG, PNG, BMP or TIFF pictures, or of scans; parts after the last are FAULT",
    )


class VideoSource(Table):
    """Each frame of a video file is the picture of one part: part n sees frame n."""

    kind: Literal["video"]
    path: FileName = Field(title="Video", description="Motion JPEG in an AVI file; on a bench any video")


class CameraSource(Table):
    """A V4L2 camera. A part's picture is the one whose exposure starts inside the window after its trigger."""

    kind: Literal["camera"]
    device: FileName = Field(title="Device", description="for example /dev/video0, or better a link in /dev/v4l/by-id")
    width: int = Field(0, ge=0, le=65535, title="Width", description="pixels asked of the camera; 0 = its default")
    height: int = Field(0, ge=0, le=65535, title="Height", description="pixels asked of the camera; 0 = its default")
    fps: float = Field(
        0, ge=0, le=10_000, title="Rate", description="frames per second asked of the camera; 0 = its default"
    )
    triggered: bool = Field(
        False, title="Triggered", description="the photo-eye triggers each exposure; false = free-running"
    )
    delay_ms: float = Field(
        0, ge=-1000, le=10_000, title="Delay", description="from the trigger to the start of the window, ms"
    )
    window_ms: float = Field(
        gt=0, le=10_000, title="Window", description="the exposure starts within this time after the delay, ms"
    )
    readout_ms: float = Field(
        0, ge=0, le=1000, title="Readout offset", description="from the end of exposure to the driver's time stamp, ms"
    )
    exposure_ms: float = Field(0, ge=0, le=1000, title="Exposure", description="duration of the exposure, ms")
    transfer_ms: float = Field(
        100, gt=0, le=5000, title="Transfer", description="longest time from an exposure's start to its picture, ms"
    )
    trigger_latency_ms: float = Field(
        5,
        ge=0,
        le=1000,
        title="Trigger latency",
        description="longest time from a trigger to its arrival here, ms; a picture is not used before that",
    )


class BeltSource(Table):
    """The belt simulator's camera or scanner: it names the part in each picture or scan it sends."""

    kind: Literal["belt"]
    socket: FileName = Field(title="Socket", description="Unix socket of the simulator's camera")
    timeout_ms: float = Field(
        150, gt=0, le=10_000, title="Timeout", description="longest wait for a part's picture after its trigger, ms"
    )


class NoReject(Table):
    """A bench: no hardware, every picture of the source is a part, nothing is thrown off any belt."""

    kind: Literal["none"] = "none"


class LinkReject(LinkSettings):
    """The beltline reject controller on a serial port."""

    kind: Literal["link"]


class ModbusReject(ModbusSettings):
    """A plant's own PLC over Modbus."""

    kind: Literal["modbus"]


Source = Annotated[FolderSource | VideoSource | CameraSource | BeltSource, Field(discriminator="kind")]
Reject = Annotated[NoReject | LinkReject | ModbusReject, Field(discriminator="kind")]


class Paths(Table):
    """Files that the station writes."""

    journal: FileName = Field(
        Path("/var/lib/beltline/journal.db"), title="Journal", description="SQLite file of triggers and outcomes"
    )
    journal_parts: int = Field(
        KEEP,
        ge=10_000,
        le=1_000_000_000,
        title="Parts kept",
        description="outcomes kept in the journal, about 0.5 kB each; older ones go",
    )
    bundles: FileName = Field(
        Path("/var/lib/beltline/bundles"), title="Bundles", description="folder of what `beltline install` put in place"
    )
    engines: FileName = Field(
        Path("/var/lib/beltline/engines"), title="Engines", description="folder of what this box made for its bundles"
    )
    control: FileName = Field(
        Path("/run/beltline/control.sock"), title="Control socket", description="what `beltline status` talks to"
    )


class Settings(Table):
    """One station."""

    station: Station = Field(Station(), title="Station")
    bundle: BundleChoice = Field(BundleChoice(), title="Bundle")
    source: Source = Field(title="Source")
    reject: Reject = Field(NoReject(), title="Reject path")
    mqtt: MqttSettings | None = Field(None, title="MQTT")
    paths: Paths = Field(Paths(), title="Paths")

    @model_validator(mode="after")
    def _runnable(self) -> Settings:
        if self.reject.kind == "none" and self.source.kind not in ("folder", "video"):
            raise ValueError(
                f'source {self.source.kind!r} needs a trigger: add a [reject] table with kind = "link" or "modbus", '
                "or try the bundle on a folder"
            )
        if self.paths.journal == self.paths.control:
            raise ValueError(f"[paths] journal and control are the same file, {self.paths.journal}")
        if self.mqtt and self.mqtt.backlog_rows > self.paths.journal_parts:
            raise ValueError(
                f"[mqtt] backlog_rows = {self.mqtt.backlog_rows} is more than the [paths] journal_parts = "
                f"{self.paths.journal_parts} that the journal keeps: unsent outcomes would go unseen"
            )
        return self


def load_settings(path: Path) -> Settings:
    """Read and check a station file.

    Raises:
        SettingsError: it is missing, not TOML, or says something that cannot be.

    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}. Give the path of a station.toml.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: no text, so no TOML file. Give the station.toml; it names the bundle.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}. Correct it, or give another file.") from None
    if isinstance(raw.get("reject"), dict):
        raw["reject"].setdefault("kind", "none")
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(path, problem) for problem in error.errors())) from None
    return _anchor(settings, path.absolute().parent)


AnyModel = TypeVar("AnyModel", bound=BaseModel)


def _anchor(table: AnyModel, folder: Path) -> AnyModel:
    """The same settings with every relative path taken from `folder`."""
    anchored: dict[str, Any] = {}
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            anchored[name] = _anchor(value, folder)
        elif isinstance(value, Path) and not value.is_absolute():
            anchored[name] = folder / os.path.expanduser(value)  # noqa: PTH111 - pathlib's fails for unknown users
    return table.model_copy(update=anchored)


def _explain(path: Path, problem: Any) -> str:
    owners, shown, field = _locate(problem["loc"])
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    table = f"{path}: [{'.'.join(shown[:-1])}] " if shown[:-1] else f"{path}: "
    key = shown[-1] if shown else ""
    meaning = f" ({field.description or field.title})" if field else ""
    if kind == "extra_forbidden":
        known = [name for owner in owners for name in owner.model_fields]
        return f"{table}unknown key {key!r} (value {value!r}); {_nearest(key, known)}"
    if kind == "missing" and (tables := _models(field.annotation if field else None)):
        kinds = [kind for table in tables for kind in _kinds(table)]
        keys = [name for name, key in tables[0].model_fields.items() if key.is_required()]
        needs = f"kind: {', '.join(kinds)}" if kinds else ", ".join(keys)
        return f"{path}: [{key}] is missing. Add this table, with {needs}."
    if kind == "missing":
        return f"{table}{key} is missing{meaning}. Add it."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = [k for option in _models(field.annotation if field else None) for k in _kinds(option)]
        found = f"unknown kind {context['tag']!r}" if "tag" in context else "kind is missing"
        return f"{path}: [{'.'.join(shown)}] {found}; {_nearest(str(context.get('tag')), kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(value, (dict, BaseModel)):
        return f"{path}: [{'.'.join(shown)}] {message}" if shown else f"{path}: {message}"
    return f"{table}{key} = {value!r}: {message}{meaning}"


def _locate(location: Sequence[str | int]) -> tuple[list[type[BaseModel]], list[str], FieldInfo | None]:
    """The models that own the last key of a pydantic location, the keys as the file has them, and its field."""
    options: list[type[BaseModel]] = [Settings]
    owners, shown, field = options, list[str](), None
    for step in location:
        if tagged := [option for option in options if step in _kinds(option)]:
            options = tagged
            continue
        owners = options
        shown.append(str(step))
        field = next((o.model_fields[str(step)] for o in owners if str(step) in o.model_fields), None)
        options = _models(field.annotation) if field else []
    return owners, shown, field


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in _models(option)]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _nearest(key: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known)}."
