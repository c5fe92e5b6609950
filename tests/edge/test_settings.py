"""station.toml: what is accepted, and the message for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edge.settings import FolderSource, Settings, SettingsError, load_settings

BUNDLE = '[bundle]\npath = "x.bundle"\n'
FOLDER = '[source]\nkind = "folder"\npath = "parts"\n'
LINK = (
    '[reject]\nkind = "link"\nport = "/dev/ttyACM0"\ndecision_distance_counts = 800\ngate_distance_counts = 1000\n'
    "gate_window_before_counts = 50\ngate_window_after_counts = 100\nmin_part_spacing_counts = 200\n"
)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Settings]:
    def load(text: str) -> Settings:
        (tmp_path / "station.toml").write_text(text)
        return load_settings(tmp_path / "station.toml")

    return load


def test_the_smallest_file_is_a_bench(load: Callable[[str], Settings], tmp_path: Path) -> None:
    found = load(BUNDLE + FOLDER)
    assert found.reject.kind == "none"
    assert found.bundle.graph == "auto"
    assert found.paths.journal == Path("/var/lib/beltline/journal.db")
    assert found.paths.model_fields_set == set()
    assert isinstance(found.source, FolderSource)
    assert found.source.path == tmp_path / "parts", "relative paths count from the file"


def test_a_whole_station(load: Callable[[str], Settings], tmp_path: Path) -> None:
    camera = '[source]\nkind = "camera"\ndevice = "/dev/video0"\nwindow_ms = 5\n'
    text = BUNDLE + camera + LINK + '[mqtt]\nhost = "localhost"\n[station]\nsite = "plant"\n[paths]\njournal = "j.db"\n'
    found = load(text)
    assert found.reject.kind == "link"
    assert found.mqtt is not None
    assert found.paths.journal == tmp_path / "j.db"
    assert found.paths.model_fields_set == {"journal"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (BUNDLE, ["[source] is missing. Add this table, with kind: folder, video, camera, belt."]),
        ("", ["[source] is missing"]),
        (BUNDLE + FOLDER + "[sorce]\n", ["unknown key 'sorce'", "did you mean 'source'?"]),
        (BUNDLE + 'grph = "int8"\n' + FOLDER, ["[bundle]", "'grph'", "'int8'", "did you mean 'graph'?"]),
        (BUNDLE + 'graph = "int4"\n' + FOLDER, ["[bundle] graph = 'int4'", "'auto', 'float' or 'int8'"]),
        (BUNDLE + "threshold = nan\n" + FOLDER, ["threshold = nan", "finite"]),
        (BUNDLE + "threads = 0\n" + FOLDER, ["threads = 0", "processor threads"]),
        (BUNDLE + '[source]\nkind = "foldr"\npath = "p"\n', ["[source]", "'foldr'", "did you mean 'folder'?"]),
        (BUNDLE + '[source]\npath = "p"\n', ["[source] kind is missing", "folder, video, camera, belt"]),
        (BUNDLE + '[source]\nkind = "folder"\n', ["[source] path is missing", "folder of"]),
        (BUNDLE + '[source]\nkind = "belt"\nsocket = "s"\n', ["needs a trigger", "[reject]"]),
        (BUNDLE + FOLDER + LINK.replace("800", "8000"), ["[reject]", "decision_distance_counts = 8000"]),
        (
            BUNDLE + FOLDER + LINK.replace("port", "prt"),
            ["[reject]", "port is missing", "'prt'", "did you mean 'port'?"],
        ),
        (BUNDLE + FOLDER + '[reject]\nkind = "modbus"\n', ["[reject]", "host"]),
        (BUNDLE + FOLDER + '[mqtt]\nhost = "10.1.2.3"\n', ["[mqtt]", "10.1.2.3", "credentials"]),
        (BUNDLE + FOLDER + "x = = 1\n", ["not a TOML file", "line 6", "Correct it"]),
        ("bundle = 3\n" + FOLDER, ["bundle = 3"]),
        (BUNDLE + "threshold = true\n" + FOLDER, ["threshold = True", "valid number"]),
        (BUNDLE + 'threshold = "0.3"\n' + FOLDER, ["threshold = '0.3'", "valid number"]),
        (BUNDLE + "threads = true\n" + FOLDER, ["threads = True", "valid integer"]),
        (BUNDLE + 'recipe = "a\\u0000b"\n' + FOLDER, ["recipe = 'a\\x00b'"]),
        ('[bundle]\npath = "a\\u0000b"\n' + FOLDER, ["path = 'a\\x00b'", "must name a file"]),
        ('[bundle]\npath = ""\n' + FOLDER, ["path = ''", "must name a file"]),
        (BUNDLE + FOLDER + LINK.replace('port = "/dev/ttyACM0"', 'port = ""'), ["[reject] port = ''"]),
        ("a = " + "[" * 100_000, ["not a TOML file"]),
        (BUNDLE + "threshold = 1e300\n" + FOLDER, ["threshold = 1e+300", "less than or equal"]),
    ],
)
def test_the_message_names_file_key_value_and_next_step(
    load: Callable[[str], Settings], text: str, parts: list[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(text)
    assert "station.toml: " in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file"):
        load_settings(tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match="Is a directory"):
        load_settings(tmp_path)


def test_a_bundle_is_no_station_file(tmp_path: Path, tiny: SimpleNamespace) -> None:
    bundle = tiny.archive(tmp_path / "x.bundle", tiny.files())
    with pytest.raises(SettingsError, match=r"x\.bundle: no text, so no TOML file\. Give the station\.toml"):
        load_settings(bundle)


def test_a_path_of_a_user_that_does_not_exist_is_a_name_as_any_other(tmp_path: Path) -> None:
    file = tmp_path / "station.toml"
    file.write_text('[bundle]\npath = "~nobody-here/x.bundle"\n' + FOLDER)
    assert load_settings(file).bundle.path == tmp_path / "~nobody-here" / "x.bundle"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_damaged_files_are_settings_or_a_message(tmp_path: Path, at: int, noise: bytes) -> None:
    text = (BUNDLE + FOLDER + LINK).encode()
    at %= len(text)
    (tmp_path / "station.toml").write_bytes(text[:at] + noise + text[at + len(noise) :])
    try:
        load_settings(tmp_path / "station.toml")
    except SettingsError as error:
        assert "station.toml: " in str(error)  # noqa: PT017 - either outcome is right


def fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for nested in nested_models(field.annotation):
            yield from fields(nested)


def nested_models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in getattr(annotation, "__args__", ()) for model in nested_models(option)]


def test_every_field_is_explained() -> None:
    for name, field in fields(Settings):
        if name.endswith(".kind"):
            continue
        assert field.title, f"{name} has no title"
        assert field.description or nested_models(field.annotation), f"{name} has no description"
