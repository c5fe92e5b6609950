"""What a station scores with: the bundle that its file names or that is installed, whose it is, and which rendering.

An engine runs where the install measured it, chose it, and it still fits this machine; ONNX Runtime then stands by on
the processor, with the graph that it would run and that graph's own threshold. In every other case it runs alone. That
an engine was chosen and does not run is never silent: `instead_of_engine` says why, and goes to all who look.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from edge.bundle import Bundle, read_bundle
from edge.engine.record import EngineError
from edge.engine_scorer import open_engine
from edge.installed import archive, installed_now
from edge.reject import too_slow
from edge.scorer import Scorer, ScorerError, choose_scorer, slow_step_ms
from edge.settings import Settings, SettingsError
from edge.signature import accepted
from edge.speed import read_speed

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    scorer: Scorer
    fallback: Scorer | None = None  # stands by where the scorer has an engine
    instead_of_engine: str = ""  # why the engine that was chosen at the install does not run

    def close(self) -> None:
        self.scorer.close()


class Loaded(NamedTuple):
    chosen: Chosen
    signature: str  # "signed by workshop", or "unsigned"


def bundle_path(settings: Settings) -> Path:
    """Where the station's bundle lies.

    Raises:
        InstalledError: the file names none, and none is installed.

    """
    folder = settings.paths.bundles
    return settings.bundle.path or archive(folder, installed_now(folder).current)


def open_bundle(settings: Settings, path: Path) -> tuple[Bundle, str]:
    """A bundle that this box accepts, and the words why.

    Raises:
        BundleError: it is damaged, or by nobody whom this box trusts.

    """
    bundle = read_bundle(path)
    return bundle, accepted(bundle, settings.bundle.keys, allow_unsigned=settings.bundle.allow_unsigned)


def choose(bundle: Bundle, settings: Settings) -> Chosen:
    """What the station runs: the graph that its file names, or what was chosen at the install, or the usual graph.

    Raises:
        BundleError: it has not the class that the station inspects.
        ScorerError: no graph can be trusted on this box.

    """
    wanted, engines = settings.bundle, settings.paths.engines
    class_index = bundle.class_index(wanted.class_name)
    speed = None if wanted.path else read_speed(engines, bundle.id)
    if speed and not speed.holds:
        log.warning("the graph was %s", speed.elsewhere)
    first = speed.graph if speed and speed.holds else None
    scorer = choose_scorer(bundle, wanted.graph, wanted.threads, class_index, first)
    if wanted.graph != "auto" or not (speed and speed.engine and speed.engine.chosen):
        return Chosen(scorer)
    try:
        if not speed.holds:
            raise EngineError(f"the engine was {speed.elsewhere}.")
        on_gpu = open_engine(engines, bundle, class_index, speed.engine.sha256)
    except (EngineError, ScorerError) as error:
        log.warning("the engine does not run, ONNX Runtime does: %s", error)
        return Chosen(scorer, instead_of_engine=str(error))
    p99_ms = speed.graphs[scorer.graph].p99_ms or 0.0
    if problem := too_slow(settings.reject, p99_ms):
        log.warning("if the engine fails, inspection stops: ONNX Runtime cannot stand in for it. %s", problem)
        return Chosen(on_gpu)
    return Chosen(on_gpu, fallback=scorer)


def load(settings: Settings, path: Path) -> Loaded:
    """Everything that may be wrong with a bundle on this station is found here. The caller closes what was chosen.

    Raises:
        BundleError, ScorerError: see `open_bundle` and `choose`.
        SettingsError: its graph is too slow for the station's step limit.

    """
    bundle, signature = open_bundle(settings, path)
    chosen = choose(bundle, settings)
    try:
        step_ms = slow_step_ms(chosen.scorer) if settings.reject.kind != "none" else 0.0
        if problem := too_slow(settings.reject, step_ms):
            raise SettingsError(f"{chosen.instead_of_engine} {problem}".lstrip())
    except BaseException:
        chosen.close()
        raise
    return Loaded(chosen, signature)
