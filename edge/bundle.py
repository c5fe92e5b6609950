"""The bundle: everything that a box needs to inspect one product, immutable and hashed.

A `.bundle` is an uncompressed tar of a flat set of files (plus the folder `golden/`); a directory with the same files
is the same bundle. `manifest.json` lists every other file with its sha256, `manifest.sha256` holds the hash of the
manifest, and that hash is the bundle's id. Reading verifies all of it before anything is used: a flipped byte, a
missing, surplus or renamed file, an unknown schema version, or a threshold that is not a finite number is a
`BundleError` that names the file and what to do. Nothing is unpacked to disk and nothing is ever unpickled; a bundle is
small, so its verified bytes are simply held in memory.

Who: `compile` writes bundles with the same models; `edge` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edge.errors import BeltlineError

SCHEMA: Literal[1] = 1
SIZE_LIMIT = 512 * 1024 * 1024  # bytes; a larger archive is refused unread
GraphName = Literal["float", "int8", "trt"]


class BundleError(BeltlineError):
    """The bundle cannot be trusted or read. The message names the file, the value and the next step."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {value}")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Tolerance = Annotated[Finite, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Strict)


class Source(Strict):
    """The camera frames that the bundle was made from; a frame outside these ranges is not inspected."""

    height: tuple[int, int]  # smallest, largest, pixels
    width: tuple[int, int]
    channels: Literal[1, 3]
    white: int = 255  # the sample value of white: 255, or for 16-bit cameras 1023, 4095, 16383, 65535


class Input(Strict):
    """The graph's `image` input: uint8 [B, height, width, 3], RGB."""

    front_end: Literal["rgb"] = "rgb"
    front_end_version: Literal[1] = 1
    height: int = Field(ge=32, le=4096)
    width: int = Field(ge=32, le=4096)
    source: Source


class Graph(Strict):
    """One rendering of the model. The `float` graph is always there; reduced ones only when they proved themselves."""

    file: str
    precision: str  # for people: "float32", "int8 Q/DQ (uint8 activations)"
    runtime: Literal["onnxruntime", "tensorrt"]


class Manifest(Strict):
    schema_version: Literal[1] = SCHEMA
    name: str
    version: str
    method: str
    created: str  # ISO 8601, UTC
    input: Input
    map_height: int = Field(le=256)
    map_width: int = Field(le=256)
    score: str  # for people: how the map becomes the score
    graphs: dict[GraphName, Graph]
    classes: list[str] = []
    provenance: dict[str, object]
    files: dict[str, str]  # file name -> sha256 of every file but the manifest, its hash and the signature


class Threshold(Strict):
    """A part is rejected when score > value."""

    value: Finite
    target_false_reject: float = Field(gt=0, lt=1)
    rule: str  # for people: "order statistic 231 of 240, moved half-way to the next"
    parts: int = Field(ge=1)  # physical parts that it was set on
    interval: tuple[Finite, Finite]  # 95 % interval of the realised false-reject rate
    approximate: bool = False  # cross-fitted: the parts were scored by sibling models
    flagged: str = ""  # a warning that people must see, or nothing


class Golden(Strict):
    """One reference input with what each graph must say of it, within tolerance."""

    image: str  # PNG, uint8 RGB at the graph's input size
    scores: dict[GraphName, Finite]
    maps: dict[GraphName, str]  # .npy float32
    score_tolerance: dict[GraphName, Tolerance]  # absolute
    map_tolerance: dict[GraphName, Tolerance]  # absolute, largest pixel


class GoldenSet(Strict):
    samples: list[Golden] = Field(min_length=1)


class Bundle:
    """A verified bundle. Make one with `read_bundle`."""

    def __init__(self, path: Path, identity: str, files: dict[str, bytes]) -> None:
        self.path = path
        self.id = identity
        self._files = files
        self.manifest = _parse(path, files, "manifest.json", Manifest)
        raw = _json(path, files, "threshold.json")
        if not isinstance(raw, dict):
            raise BundleError(f"{path}: threshold.json is not an object of one entry per graph")
        self.thresholds: dict[str, Threshold] = {
            name: _validate(path, f"threshold.json ({name})", entry, Threshold) for name, entry in raw.items()
        }
        self.golden = _parse(path, files, "golden/golden.json", GoldenSet)
        self.signed = "signature" in files
        for name, graph in self.manifest.graphs.items():
            if name not in self.thresholds:
                raise BundleError(f"{path}: graph '{name}' has no threshold of its own. Compile the bundle again.")
            if graph.file not in files:
                raise BundleError(f"{path}: graph '{name}' names {graph.file}, which is not in the bundle")
        if "float" not in self.manifest.graphs:
            raise BundleError(f"{path}: the float graph is missing. Compile the bundle again.")
        self._check_golden()

    def _check_golden(self) -> None:
        for sample in self.golden.samples:
            for name in (sample.image, *sample.maps.values()):
                if name not in self._files:
                    raise BundleError(f"{self.path}: golden/golden.json names {name}, which is not in the bundle")
            for graph in self.manifest.graphs:
                if any(graph not in said for said in _said(sample)):
                    raise BundleError(
                        f"{self.path}: golden/golden.json does not say what graph '{graph}' answers to {sample.image}. "
                        "Compile the bundle again."
                    )

    def read(self, name: str) -> bytes:
        return self._files[name]

    def array(self, name: str) -> NDArray[np.float32]:
        """A golden map, float32 [h, w]."""
        try:
            data: NDArray[np.float32] = np.load(io.BytesIO(self._files[name]), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BundleError(f"{self.path}: {name} is not an array ({error}). Compile the bundle again.") from error
        expected = (self.manifest.map_height, self.manifest.map_width)
        if data.dtype != np.float32 or data.shape != expected:
            raise BundleError(f"{self.path}: {name} holds {data.dtype} {data.shape}, expected float32 {expected}")
        return data

    def graph_sha256(self, name: GraphName) -> str:
        return self.manifest.files[self.manifest.graphs[name].file]


def _said(sample: Golden) -> tuple[Mapping[GraphName, object], ...]:
    return sample.scores, sample.maps, sample.score_tolerance, sample.map_tolerance


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle, an archive or a directory.

    Raises:
        BundleError: anything about it is missing, surplus, changed, of another version or not finite.

    """
    files = _read_directory(path) if path.is_dir() else _read_archive(path)
    for name in ("manifest.json", "manifest.sha256"):
        if name not in files:
            raise BundleError(f"{path}: {name} is missing: incomplete, or no bundle at all. Copy it again.")
    identity = hashlib.sha256(files["manifest.json"]).hexdigest()
    stated = files["manifest.sha256"].decode("ascii", "replace").strip()
    if stated != identity:
        raise BundleError(
            f"{path}: manifest.json does not match manifest.sha256 ({identity[:12]} found, {stated[:12]} stated). "
            "The bundle was changed or damaged: copy it again from where it was compiled."
        )
    manifest = _json(path, files, "manifest.json")
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version != SCHEMA:
        raise BundleError(
            f"{path}: bundle schema version {version!r}, this beltline reads {SCHEMA}. "
            "Install the matching beltline or compile the bundle again."
        )
    listed = _parse(path, files, "manifest.json", Manifest).files
    present = set(files) - {"manifest.json", "manifest.sha256", "signature"}
    if missing := sorted(set(listed) - present):
        raise BundleError(f"{path}: {missing[0]} is missing. Copy the bundle again.")
    if surplus := sorted(present - set(listed)):
        raise BundleError(f"{path}: {surplus[0]} is not listed in the manifest. Remove it, or copy the bundle again.")
    for name, sha256 in listed.items():
        if (found := hashlib.sha256(files[name]).hexdigest()) != sha256:
            raise BundleError(
                f"{path}: {name} was changed or damaged (sha256 {found[:12]}, manifest says {sha256[:12]}). "
                "Copy the bundle again from where it was compiled."
            )
    return Bundle(path, identity, files)


def _read_directory(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def _read_archive(path: Path) -> dict[str, bytes]:
    try:
        size = path.stat().st_size
        if size > SIZE_LIMIT:
            raise BundleError(f"{path}: {size} bytes, more than the limit of {SIZE_LIMIT}: not a beltline bundle")
        files: dict[str, bytes] = {}
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name in files:
                    raise BundleError(f"{path}: {member.name!r} is a link, a device or there twice: refused")
                stream = archive.extractfile(member)
                files[member.name] = stream.read() if stream else b""
    except FileNotFoundError:
        raise BundleError(f"{path}: no such bundle. Give the path that `beltline compile -o` wrote.") from None
    except (OSError, tarfile.TarError) as error:
        raise BundleError(f"{path}: not a readable bundle ({error}). Copy it again.") from error
    return files


def _json(path: Path, files: dict[str, bytes], name: str) -> object:
    if name not in files:
        raise BundleError(f"{path}: {name} is missing. Copy the bundle again.")
    try:
        return json.loads(files[name])
    except ValueError as error:
        raise BundleError(f"{path}: {name} is not JSON ({error}). Copy the bundle again.") from error


def _parse(path: Path, files: dict[str, bytes], name: str, model: type[Model]) -> Model:
    return _validate(path, name, _json(path, files, name), model)


def _validate(path: Path, name: str, raw: object, model: type[Model]) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise BundleError(f"{path}: {name}: {where}: {first['msg']} (got {first['input']!r})") from error
