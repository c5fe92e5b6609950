"""What a station scores with: the bundle that its file names or that is installed, whose it is, and which rendering."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edge.bundle import Bundle, read_bundle
from edge.installed import archive, installed_now
from edge.reject import too_slow
from edge.scorer import Scorer, choose_scorer, slow_step_ms
from edge.settings import Settings, SettingsError
from edge.signature import accepted
from edge.speed import chosen_at_install


class Loaded(NamedTuple):
    scorer: Scorer
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


def make_scorer(bundle: Bundle, settings: Settings) -> Scorer:
    """The graph that the station runs: the one its file names, or that was chosen at the install, or the usual one.

    Raises:
        BundleError: it has not the class that the station inspects.
        ScorerError: no graph can be trusted on this box.

    """
    choice = settings.bundle
    first = None if choice.path else chosen_at_install(settings.paths.engines, bundle.id)
    return choose_scorer(bundle, choice.graph, choice.threads, bundle.class_index(choice.class_name), first)


def load(settings: Settings, path: Path) -> Loaded:
    """Everything that may be wrong with a bundle on this station is found here.

    Raises:
        BundleError, ScorerError: see `open_bundle` and `make_scorer`.
        SettingsError: its graph is too slow for the station's step limit.

    """
    bundle, signature = open_bundle(settings, path)
    scorer = make_scorer(bundle, settings)
    if problem := too_slow(settings.reject, slow_step_ms(scorer) if settings.reject.kind != "none" else 0.0):
        raise SettingsError(problem)
    return Loaded(scorer, signature)
