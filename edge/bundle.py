"""The bundle: everything that a box needs to inspect one product, immutable and hashed.

A `.bundle` is an uncompressed tar of a flat set of files (plus the folder `golden/`); a directory with the same files
is the same bundle. `manifest.json` lists every other file with its sha256, `manifest.sha256` holds the hash of the
manifest, and that hash is the bundle's id. Reading verifies all of it before anything is used: a flipped byte anywhere
in the archive, another length, a missing, surplus or renamed file, an unknown schema version, or a value of the wrong
type or out of bounds is a `BundleError` that names the file and what to do. Nothing is unpacked to disk and nothing is
ever unpickled; a bundle is small, so its verified bytes are simply held in memory. Whose signature it carries in the
file `signature`, outside the manifest, is judged by `edge.signature`.

Schema version 1 is a bundle for one product, version 2 one for several classes, which the manifest lists by name: its
`threshold.json` has the thresholds of each class under its name, each golden input names its class, and where the
graphs must be told the class they have the input `class`, int64 [B], its position in the list. Where cameras of several
formats see them, `class_sources` has the frames of each class; a station takes those of its own class alone. Version 3
is a bundle that looks at scans, beside pictures or without, of one class or several: `scan` is what its front end is
told, `tensors` are the inputs of the graphs that it makes, and golden inputs have these as `.npy` files. A bundle is of
the lowest version that can say it, so that older boxes read what they can run.

Who: `compile` writes bundles with the same models; `edge` reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from edge.archive import pack, read_files
from edge.errors import BundleError

SCHEMAS = (1, 2, 3)
SCORE_LIMIT = 1e9  # no method's scores come near; a threshold beyond would accept every part
LARGEST_TOLERANCE = 0.5  # of a golden score, or of 1: a wider one proves nothing
GraphName = Literal["float", "int8", "trt"]


Finite = Annotated[float, Field(allow_inf_nan=False)]
Tolerance = Annotated[Finite, Field(ge=0)]
Rate = Annotated[Finite, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=65535)]  # pixels


def _ordered(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError(f"must be smallest, largest, got {span}")
    return span


def _different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name is there twice")
    return names


Span = Annotated[tuple[Side, Side], AfterValidator(_ordered)]
ClassName = Annotated[str, Field(pattern=r"^[^\p{Cc}]{1,100}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Parsed = TypeVar("Parsed")


class Source(Strict):
    """The camera frames that the bundle was made from; a frame outside these ranges is not inspected."""

    height: Span  # smallest, largest
    width: Span
    channels: Literal[1, 3]
    white: int = Field(
        255, ge=255, le=65535
    )  # the sample value of white: 255, or for 16-bit cameras 1023, 4095, 16383, 65535


class Input(Strict):
    """The graph's `image` input: uint8 [B, height, width, 3], RGB."""

    front_end: Literal["rgb"] = "rgb"
    front_end_version: Literal[1] = 1
    height: int = Field(ge=32, le=4096)
    width: int = Field(ge=32, le=4096)
    source: Source


Background = Literal["belt", "none"]  # of a scan: a belt that is taken away, or nothing


class ScanSource(Strict):
    """The scans that the bundle was made from; one outside these ranges is not inspected."""

    height: Span  # smallest, largest
    width: Span
    unit: Literal["m", "mm"]  # of the files
    distance_mm: tuple[Finite, Finite]  # smallest, largest median of z


class ScanInput(Strict):
    """The tensors that the front end makes of a scan: see `edge.organised_scan.front_end`."""

    front_end: Literal["organised_scan"] = "organised_scan"
    front_end_version: Literal[1] = 1
    height: int = Field(ge=32, le=1024)
    width: int = Field(ge=32, le=1024)
    background: Background
    fpfh_cells: int = Field(0, ge=0, le=128)  # a side of its grid; 0: none
    fpfh_neighbours: int = Field(32, ge=4, le=128)
    source: ScanSource


ScanTensor = Literal["scan", "geometry", "fpfh"]  # as `edge.organised_scan.front_end.Prepared` has them


class Tensor(Strict):
    """An input of the graphs that is made of a scan: [B, *shape]."""

    name: ScanTensor
    dtype: Literal["float32"] = "float32"
    shape: list[Side] = Field(min_length=1, max_length=4)


class Spec(NamedTuple):
    """What the graphs are given of one part: see `edge.prepare`."""

    image: Input | None
    scan: ScanInput | None
    tensors: tuple[Tensor, ...]
    map_size: tuple[int, int]


class Graph(Strict):
    """One rendering of the model. The `float` graph is always there; reduced ones only when they proved themselves."""

    file: str
    precision: str  # for people: "float32", "int8 Q/DQ (uint8 activations)"
    runtime: Literal["onnxruntime", "tensorrt"]


class Manifest(Strict):
    schema_version: Literal[1, 2, 3] = 1
    name: str
    version: str
    method: str
    created: str  # ISO 8601, UTC
    input: Input | None = None  # of pictures
    scan: ScanInput | None = None
    tensors: list[Tensor] = []  # of a scan
    map_height: int = Field(ge=1, le=256)
    map_width: int = Field(ge=1, le=256)
    score: str  # for people: how the map becomes the score
    graphs: dict[GraphName, Graph]
    classes: Annotated[list[ClassName], AfterValidator(_different)] = []  # where there are several
    class_input: bool = False  # whether the graphs have the input `class`
    class_sources: list[Source] = []  # one per class where they differ in channels or bits; `input` has the first
    provenance: dict[str, object]
    files: dict[str, str]  # file name -> sha256 of every file but the manifest, its hash and the signature

    @model_validator(mode="after")
    def _of_its_version(self) -> Manifest:
        several = len(self.classes) > 1
        if (self.scan is not None) != (self.schema_version == 3):
            raise ValueError(f"schema version {self.schema_version} with{'' if self.scan else 'out'} a scan")
        if several != (self.schema_version == 2) and not self.scan:
            raise ValueError(f"schema version {self.schema_version} with {len(self.classes)} class(es)")
        if bool(self.tensors) != (self.scan is not None) or not (self.input or self.scan):
            raise ValueError("neither a picture nor a scan with its tensors is looked at")
        if len({tensor.name for tensor in self.tensors}) < len(self.tensors):
            raise ValueError("a tensor is there twice")
        if self.class_input and not several:
            raise ValueError("the input `class` without several classes")
        if self.class_sources and not (self.input and several and len(self.class_sources) == len(self.classes)):
            raise ValueError(f"{len(self.class_sources)} source(s) for {len(self.classes)} class(es)")
        return self

    @property
    def pictures(self) -> Input:
        """What the front end of pictures is told.

        Raises:
            BundleError: the graphs look at none.

        """
        if self.input is None:
            raise BundleError(f"{self.name}: looks at scans alone, and a picture is asked for.")
        return self.input


class Threshold(Strict):
    """A part is rejected when score > value."""

    value: Finite = Field(ge=-SCORE_LIMIT, le=SCORE_LIMIT)
    target_false_reject: float = Field(gt=0, lt=1)
    rule: str  # for people: "order statistic 231 of 240, moved half-way to the next"
    parts: int = Field(ge=1)  # physical parts that it was set on
    interval: tuple[Rate, Rate]  # 95 % interval of the realised false-reject rate
    approximate: bool = False  # cross-fitted by sibling models, several pictures per part, or a tail model
    flagged: str = ""  # a warning that people must see, or nothing


class Golden(Strict):
    """One reference input with what each graph must say of it, within tolerance."""

    image: str = ""  # PNG, uint8 RGB at the graph's input size, where the graphs look at pictures
    tensors: dict[ScanTensor | Literal["mask"], str] = {}  # .npy float32, where they look at scans
    scores: dict[GraphName, Finite]
    maps: dict[GraphName, str]  # .npy float32
    score_tolerance: dict[GraphName, Tolerance]  # absolute
    map_tolerance: dict[GraphName, Tolerance]  # absolute, largest pixel
    class_name: str = ""  # where there are several

    @property
    def name(self) -> str:
        """Of its first file, for people."""
        return next((name for name in (self.image, *self.tensors.values()) if name), "a golden input without a file")

    @model_validator(mode="after")
    def _telling(self) -> Golden:
        for graph, tolerance in self.score_tolerance.items():
            if tolerance > LARGEST_TOLERANCE * max(1.0, abs(self.scores.get(graph, 0.0))):
                raise ValueError(f"a score tolerance of {tolerance:g} for graph '{graph}' would let anything pass")
        return self


class GoldenSet(Strict):
    samples: list[Golden] = Field(min_length=1)


class Bundle:
    """A verified bundle. Make one with `read_bundle`."""

    def __init__(self, path: Path, identity: str, files: dict[str, bytes]) -> None:
        self.path = path
        self.id = identity
        self._files = files
        self.manifest = _parse(path, files, "manifest.json", Manifest)
        self.thresholds = self._parse_thresholds()
        self.golden = _parse(path, files, "golden/golden.json", GoldenSet)
        self.signature = files.get("signature")  # as it stands; `edge.signature` judges it
        for name, graph in self.manifest.graphs.items():
            if any(name not in each for each in self.thresholds):
                raise BundleError(f"{path}: graph '{name}' has no threshold of its own. Compile the bundle again.")
            if graph.file not in files:
                raise BundleError(
                    f"{path}: graph '{name}' names {graph.file}, which is not in the bundle. Compile it again."
                )
        if "float" not in self.manifest.graphs:
            raise BundleError(f"{path}: the float graph is missing. Compile the bundle again.")
        self._check_golden()

    def _parse_thresholds(self) -> list[dict[str, Threshold]]:
        """For each class, or once where there is one: the threshold of each graph."""
        classes = self.manifest.classes
        if len(classes) < 2:
            return [_parse(self.path, self._files, "threshold.json", dict[str, Threshold])]
        found = _parse(self.path, self._files, "threshold.json", dict[str, dict[str, Threshold]])
        if set(found) != set(classes):
            raise BundleError(
                f"{self.path}: threshold.json is for the classes {_list(found)}, the bundle for {_list(classes)}. "
                "Compile the bundle again."
            )
        return [found[name] for name in classes]

    def class_index(self, name: str | None) -> int:
        """The position of a class, 0 where there is one.

        Raises:
            BundleError: there is no such class; or there are several, and none was named.

        """
        classes = self.manifest.classes
        if len(classes) < 2:
            if name is None or name in classes:
                return 0
            raise BundleError(f"{self.path}: for one product alone, so no class {name!r}. Remove [bundle] class_name.")
        if name is None:
            raise BundleError(f"{self.path}: for the classes {_list(classes)}. Say which with [bundle] class_name.")
        if name not in classes:
            raise BundleError(
                f"{self.path}: no class {name!r}; there are: {_list(classes)}. Correct [bundle] class_name."
            )
        return classes.index(name)

    def spec(self, class_index: int = 0) -> Spec:
        """What the front end is told: the graphs' inputs, made from the frames of this class."""
        manifest = self.manifest
        image, sources = manifest.input, manifest.class_sources
        if image and sources:
            image = image.model_copy(update={"source": sources[class_index]})
        return Spec(image, manifest.scan, tuple(manifest.tensors), (manifest.map_height, manifest.map_width))

    def _check_golden(self) -> None:
        classes = self.manifest.classes if len(self.manifest.classes) > 1 else [""]
        if (named := {sample.class_name for sample in self.golden.samples}) != set(classes):
            raise BundleError(
                f"{self.path}: golden/golden.json is for the classes {_list(named)}, the bundle for {_list(classes)}. "
                "Compile the bundle again."
            )
        wanted = {tensor.name for tensor in self.manifest.tensors} | ({"mask"} if self.manifest.scan else set())
        for sample in self.golden.samples:
            if bool(sample.image) != bool(self.manifest.input) or set(sample.tensors) != wanted:
                raise BundleError(
                    f"{self.path}: golden/golden.json: {sample.name} has not the inputs that the graphs take. Compile "
                    "the bundle again."
                )
            for name in filter(None, (sample.image, *sample.tensors.values(), *sample.maps.values())):
                if name not in self._files:
                    raise BundleError(
                        f"{self.path}: golden/golden.json names {name}, which is not in the bundle. Compile it again."
                    )
            for graph in self.manifest.graphs:
                if any(graph not in said for said in _said(sample)):
                    raise BundleError(
                        f"{self.path}: golden/golden.json does not say what graph '{graph}' answers to {sample.name}. "
                        "Compile the bundle again."
                    )

    def read(self, name: str) -> bytes:
        return self._files[name]

    def archive(self, signature: bytes | None) -> bytes:
        """The bundle as the bytes of a `.bundle`, with this signature in place of its own."""
        files = {name: data for name, data in self._files.items() if name != "signature"}
        return pack(files if signature is None else files | {"signature": signature})

    def array(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        """A golden map, or another array, float32: an `.npy` file of format 1.0 with the one header that is right."""
        shape = shape or (self.manifest.map_height, self.manifest.map_width)
        data = self._files[name]
        start = 10 + int.from_bytes(data[8:10], "little")
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
        right = data[:8] == b"\x93NUMPY\x01\x00" and data[10:start].rstrip() == header
        if not right or len(data) != start + 4 * math.prod(shape):
            raise BundleError(f"{self.path}: {name} is not an array, float32 {shape}. Compile the bundle again.")
        array = np.frombuffer(data, "<f4", offset=start).reshape(shape)
        if not np.isfinite(array).all():
            raise BundleError(f"{self.path}: {name} holds values that are not finite. Compile the bundle again.")
        return array

    def graph_sha256(self, name: GraphName) -> str:
        return self.manifest.files[self.manifest.graphs[name].file]


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _said(sample: Golden) -> tuple[Mapping[GraphName, object], ...]:
    return sample.scores, sample.maps, sample.score_tolerance, sample.map_tolerance


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle, an archive or a directory.

    Raises:
        BundleError: anything about it is missing, surplus, changed, of another version or not finite.

    """
    files = read_files(path)
    for name in ("manifest.json", "manifest.sha256"):
        if name not in files:
            raise BundleError(f"{path}: {name} is missing: incomplete, or no bundle at all. Copy it again.")
    identity = hashlib.sha256(files["manifest.json"]).hexdigest()
    stated = files["manifest.sha256"].decode("ascii", "replace").strip()
    if stated != identity:
        at = len(os.path.commonprefix([identity, stated]))  # noqa: RUF071 - by character is meant
        raise BundleError(
            f"{path}: manifest.json does not match manifest.sha256 (from digit {at + 1} on {identity[at : at + 12]!r} "
            f"found, {stated[at : at + 12]!r} stated). "
            "The bundle was changed or damaged: copy it again from where it was compiled."
        )
    manifest = _json(path, files, "manifest.json")
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version not in SCHEMAS:
        raise BundleError(
            f"{path}: bundle schema version {version!r}, this beltline reads {', '.join(map(str, SCHEMAS))}. "
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


def _json(path: Path, files: dict[str, bytes], name: str) -> object:
    if name not in files:
        raise BundleError(f"{path}: {name} is missing. Copy the bundle again.")
    try:
        return json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {name} is not JSON ({error}). Copy the bundle again.") from error


def _parse(path: Path, files: dict[str, bytes], name: str, model: type[Parsed]) -> Parsed:
    _json(path, files, name)
    try:
        return TypeAdapter(model).validate_json(files[name], strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise BundleError(
            f"{path}: {name}: {where}: {first['msg']} (got {first['input']!r:.100}). Compile the bundle again."
        ) from error
