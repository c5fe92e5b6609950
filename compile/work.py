"""The working folder of a compilation: NAME.work beside its bundle, so that one that was killed can be gone on with.

It holds pictures at the graph's size, the trunk's maps and the checkpoints of fits; of a comparison the runs that are
done. Its key names everything that these
follow from: the wishes, the content of every picture, this code, the libraries, the machine. The same command finds its
own work and goes on, to the same bits; work of another key is thrown away. The folder goes when the bundle is written
and when the compilation fails, for it would fail again; it stays when it is interrupted or killed. One compilation at a
time owns it, by a lock on the folder that dies with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from compile.backbones.choice import Backbone
from compile.bundle_writer import replacing
from compile.data import DataSet
from compile.job import WORK, Settings
from edge.errors import BeltlineError

KEY = ".beltline-work"  # the file that makes it a working folder
IRRELEVANT = ("output", "name", "version")  # wishes that change no work
LIBRARIES = (
    *("torch", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy", "accelerate"),
    *("transformers", "safetensors", "simplejpeg"),
)


class WorkError(BeltlineError):
    """The working folder cannot be used. The message says why and what to do."""


def work_path(output: Path) -> Path:
    """Give where the work for the bundle at `output` lies.

    Raises:
        WorkError: that is no name of a file.

    """
    if not output.name:
        raise WorkError(f"-o {output}: names a folder. Give the bundle's file, for example parts.bundle.")
    return output.with_name(f"{output.stem}{WORK}")


def work_key(settings: Settings, classes: Sequence[DataSet], backbone: Backbone, side: int, machine: str) -> str:
    """SHA-256 of everything that a compilation's work follows from."""
    wishes = {name: value for name, value in asdict(settings).items() if name not in IRRELEVANT}
    return key_of(wishes, classes, backbone, side, machine)


def key_of(
    wishes: Mapping[str, object], classes: Sequence[DataSet], backbone: Backbone, side: int, machine: str
) -> str:
    """SHA-256 of everything that work follows from; the `side` of the graph may follow from a measured time."""
    root = Path(__file__).parent.parent
    code = sorted(file for room in ("compile", "calibration", "edge") for file in (root / room).rglob("*.py"))
    pictures = [file for data in classes for file in (*data.good, *(image.path for image in data.test))]
    pictures += [file for data in classes for each in data.learned for file in (each.path, each.mask) if file]
    pictures += [scan for data in classes if data.scans for scan in data.scans.of.values()]
    about = {
        "wishes": {name: str(value) for name, value in wishes.items()},
        "pictures": [(str(file), _digest(file)) for file in pictures],
        "groups": [data.groups.tolist() for data in classes],
        "code": [_digest(file) for file in code],
        "backbone": [_digest(file) for file in backbone.files],
        "side": side,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "machine": [machine, platform.machine(), sys.version],
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@contextmanager
def working_folder(folder: Path, key: str, *, keep: bool = False) -> Iterator[Path]:
    """Own the folder, with what was done under this key before.

    Args:
        folder: made where there is none.
        key: of what is done in it.
        keep: also where it failed: other wishes may go on with what was done.

    Raises:
        WorkError: another compilation owns it, something else lies there, or it cannot be written.

    """
    try:
        lock = _own(folder)
    except OSError as error:
        raise WorkError(f"{folder}: cannot be used ({error.strerror}). Choose another -o.") from error
    try:
        _clear(folder, key)
        try:
            yield folder
        except Exception:
            if not keep:
                _remove(folder)
            raise
        _remove(folder)
    finally:
        os.close(lock)


def _own(folder: Path) -> int:
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise WorkError(f"{folder}: another run works here. Wait for it, or choose another -o.") from None
        with suppress(FileNotFoundError):
            if folder.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)  # whoever owned it has just removed it


def _clear(folder: Path, key: str) -> None:
    """Leave in the folder nothing but what was done under this key."""
    file = folder / KEY
    found = list(folder.iterdir())
    if found and not any(each.name == KEY or each.name.startswith(f".{KEY}.") for each in found):
        raise WorkError(f"{folder}: is no working folder of beltline. Move it, or choose another -o.")
    if file.is_file() and file.read_text("utf-8", "replace") == key:
        return
    _empty(folder)
    with replacing(file, key.encode()):
        pass


def _empty(folder: Path) -> None:
    """Remove all but the mark, which holds no key from the start: killed here, it is a working folder without work."""
    (folder / KEY).write_text("")
    for each in folder.iterdir():
        if each.name == KEY:
            continue
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def _remove(folder: Path) -> None:
    with suppress(OSError):
        _empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _digest(file: Path) -> str:
    hashed = hashlib.sha256()
    with suppress(OSError), file.open("rb") as stream:  # one that is gone is named where it is loaded
        while chunk := stream.read(1 << 20):
            hashed.update(chunk)
    return hashed.hexdigest()
