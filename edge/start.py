"""Put a station together from its settings, and take it apart with every queue flushed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge.bench import BenchPath
from edge.control import ControlServer
from edge.errors import BeltlineError
from edge.journal import Journal
from edge.journal_file import unusable
from edge.judge import Judge, Judged
from edge.load import Loaded, bundle_path, load
from edge.lock import hold
from edge.reject import make_path
from edge.settings import Settings, SettingsError
from edge.sources import PictureSource, open_source
from edge.sources.folder import Folder
from edge.sources.replay import Replay
from edge.sources.video import Video
from edge.station import Station
from edge.trial import Trial, begin
from edge.view import wanted
from edge.watchdog import Watchdog

log = logging.getLogger(__name__)


@contextmanager
def started(
    settings: Settings, *, dry_run: bool = False, on_judged: Callable[[Judged], None] | None = None
) -> Iterator[Station]:
    """A station ready to `run`.

    A bench (no reject path) ends with its pictures. It journals and listens only where the file says so, because it is
    for trying a bundle beside a station, and marks its outcomes as dry run.

    Raises:
        BeltlineError: bundle, graph, source, step limit, or a journal or socket that another has or nobody can make.

    """
    bench = settings.reject.kind == "none"
    with ExitStack() as stack:
        journal_file = settings.paths.journal
        if bench and "journal" not in settings.paths.model_fields_set:
            journal_file = Path(stack.enter_context(TemporaryDirectory(prefix="beltline-bench-"))) / "journal.db"
        if problem := unusable(journal_file):
            raise SettingsError(f"{problem} Or set [paths] journal.")
        owned = f"{journal_file}: another station is running and writes this journal. Stop it, or set [paths] journal."
        stack.enter_context(hold(journal_file, owned))
        bundle, trial = (bundle_path(settings), None) if bench or settings.bundle.path else begin(settings)
        if trial:
            stack.enter_context(trial)
        loaded, trial = _load(settings, bundle, trial)
        if loaded.signature == "unsigned":
            log.warning("the bundle is unsigned: nobody knows who made it; [bundle] allow_unsigned lets it run")
        chosen = loaded.chosen
        scorer = chosen.scorer
        own = settings.bundle.threshold
        if own is not None and (doubt := scorer.doubt(own)):
            log.warning("[bundle] threshold = %g in place of the bundle's %g: %s", own, scorer.threshold, doubt)
        judge = Judge(
            scorer,
            settings.bundle.recipe,
            own,
            fallback=chosen.fallback,
            instead_of_engine=chosen.instead_of_engine,
        )
        stack.callback(lambda: judge.scorer.close())  # noqa: PLW0108 - it may be another by then
        source = open_source(settings.source, bench=bench, wanted=wanted(scorer.spec))
        stack.callback(source.close)
        journal = Journal(journal_file, dry_run=dry_run or bench, keep=settings.paths.journal_parts)
        path = _bench(source) if bench else make_path(settings.reject, journal, inhibit=dry_run)
        station = Station(judge, source, path, journal, watchdog=Watchdog(), on_judged=on_judged, trial=trial)
        if isinstance(path, BenchPath):
            path.on_end = station.stop
        if not bench or "control" in settings.paths.model_fields_set:
            control = ControlServer(
                settings.paths.control,
                {
                    "status": lambda: _status(station, loaded, trial),
                    "ack": station.acknowledge,
                    "jog-gate": path.jog_gate,
                },
            )
            control.open()
            stack.callback(control.close)
        journal.open()
        stack.callback(journal.close)
        path.open()
        stack.callback(path.close)  # first, so that its last outcomes still reach the journal
        if trial:
            trial.inspecting = True
        yield station


def _load(settings: Settings, path: Path, trial: Trial | None) -> tuple[Loaded, Trial | None]:
    """What the station scores with; the former bundle, and no trial, where the one on trial cannot be used."""
    try:
        return load(settings, path), trial
    except BeltlineError as error:
        if trial is None:
            raise
        trial.leave(str(error))
    return load(settings, bundle_path(settings)), None


def _status(station: Station, loaded: Loaded, trial: Trial | None) -> dict[str, Any]:
    return station.status() | {"signature": loaded.signature, "trial": trial.progress if trial else None}


def _bench(source: PictureSource) -> BenchPath:
    assert isinstance(source, (Folder, Video, Replay))  # the settings allow no other source without a reject path
    return BenchPath(len(source))
