"""Put a station together from its settings, and take it apart with every queue flushed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edge.bench import BenchPath
from edge.bundle import read_bundle
from edge.control import ControlServer
from edge.journal import Journal
from edge.journal_file import unusable
from edge.judge import Judge, Judged
from edge.lock import hold
from edge.reject import make_path, too_slow
from edge.scorer import choose_scorer, slow_step_ms
from edge.settings import Settings, SettingsError
from edge.sources import PictureSource, open_source
from edge.sources.folder import Folder
from edge.sources.replay import Replay
from edge.sources.video import Video
from edge.station import Station
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
    bundle = read_bundle(settings.bundle.path)
    class_index = bundle.class_index(settings.bundle.class_name)
    scorer = choose_scorer(bundle, settings.bundle.graph, settings.bundle.threads, class_index)
    bench = settings.reject.kind == "none"
    if not bench and (problem := too_slow(settings.reject, slow_step_ms(scorer))):
        raise SettingsError(problem)
    own = settings.bundle.threshold
    if own is not None and (doubt := scorer.doubt(own)):
        log.warning("[bundle] threshold = %g in place of the bundle's %g: %s", own, scorer.threshold, doubt)
    judge = Judge(scorer, settings.bundle.recipe, own)
    with ExitStack() as stack:
        source = open_source(settings.source, bench=bench)
        stack.callback(source.close)
        journal_file = settings.paths.journal
        if bench and "journal" not in settings.paths.model_fields_set:
            journal_file = Path(stack.enter_context(TemporaryDirectory(prefix="beltline-bench-"))) / "journal.db"
        if problem := unusable(journal_file):
            raise SettingsError(f"{problem} Or set [paths] journal.")
        owned = f"{journal_file}: another station is running and writes this journal. Stop it, or set [paths] journal."
        stack.enter_context(hold(journal_file, owned))
        journal = Journal(journal_file, dry_run=dry_run or bench, keep=settings.paths.journal_parts)
        path = _bench(source) if bench else make_path(settings.reject, journal, inhibit=dry_run)
        station = Station(judge, source, path, journal, watchdog=Watchdog(), on_judged=on_judged)
        if isinstance(path, BenchPath):
            path.on_end = station.stop
        if not bench or "control" in settings.paths.model_fields_set:
            control = ControlServer(
                settings.paths.control,
                {"status": station.status, "ack": station.acknowledge, "jog-gate": path.jog_gate},
            )
            control.open()
            stack.callback(control.close)
        journal.open()
        stack.callback(journal.close)
        path.open()
        stack.callback(path.close)  # first, so that its last outcomes still reach the journal
        yield station


def _bench(source: PictureSource) -> BenchPath:
    assert isinstance(source, (Folder, Video, Replay))  # the settings allow no other source without a reject path
    return BenchPath(len(source))
