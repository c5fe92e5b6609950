"""The trial of a newly installed bundle: the station that runs it decides, and the state on disk survives its death.

The trial begins when a station starts with the bundle and is passed when that station has judged `[bundle]
trial_parts` parts. The former bundle comes back when, before that,

- the bundle cannot be opened or is not accepted, no graph gives its golden answers, or all are too slow here;
- the self-test between parts fails;
- three parts in a row get no valid score in time: a picture that the bundle does not take, a graph that fails or
  answers with no number, a verdict after the decision point. A missing picture is the camera's fault and does not
  count;
- the station ends otherwise than by being told to: a crash, a kill by the watchdog, a power cut. That it had begun
  stands on disk since before the bundle was opened, so the next start finds it.

A station that is stopped in the middle begins the trial anew at its next start. A bench takes no part. These rules are
ours.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType

from edge.errors import BeltlineError, BundleError
from edge.installed import Event, InstalledError, State, archive, changing, installed_now, now, save
from edge.load import open_bundle
from edge.settings import Settings
from firmware_bridge.parts import Reason, Verdict

log = logging.getLogger(__name__)

FAULTS_IN_A_ROW = 3
OWN_FAULTS = (Reason.BAD_FRAME, Reason.BAD_SCORE, Reason.SCORER_FAILED, Reason.NO_VERDICT)


class TrialError(BeltlineError):
    """The bundle on trial failed while the station ran, and the former one is in place again."""


class Trial:
    """One run of a bundle on trial. Leave it as a context: that writes down how it ended."""

    def __init__(self, settings: Settings, identity: str) -> None:
        self._settings, self._identity = settings, identity
        self._left, self._in_a_row = settings.bundle.trial_parts, 0
        self._passing: threading.Thread | None = None
        self.failed = ""  # why
        self.inspecting = False  # from here on an exception is a fault of the trial

    def judged(self, verdict: Verdict, *, in_time: bool) -> None:
        """Hear of each part. Quick: what goes to the disk goes by a thread of its own."""
        if self._passing or self.failed:
            return
        self._left -= 1
        self._in_a_row = 0 if in_time and verdict.reason not in OWN_FAULTS else self._in_a_row + 1
        if self._in_a_row >= FAULTS_IN_A_ROW:
            last = verdict.reason.value if in_time else "late"
            self.fault(f"{self._in_a_row} parts in a row without a valid score in time, the last: {last}")
        elif self._left <= 0 and not self._in_a_row:
            self._passing = threading.Thread(target=self._pass, name="trial")
            self._passing.start()

    def fault(self, why: str) -> None:
        """The bundle is at fault: the station should end."""
        if not self._passing:
            self.failed = why

    def leave(self, why: str) -> None:
        """Put the former bundle back at once: the one on trial cannot even be started with.

        Raises:
            BundleError: the former one is not sound either.
            OSError: the disk.

        """
        try:
            switch_back(self._settings, self._identity, why)
        except BundleError as error:
            raise BundleError(f"{why} And the former bundle cannot come back: {error}") from None

    @property
    def progress(self) -> str:
        """For people."""
        return "passed" if self._passing else self.failed or f"{max(self._left, 0)} parts to go"

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._passing:
            self._passing.join()
        elif self.failed:
            former = switch_back(self._settings, self._identity, self.failed)
            raise TrialError(
                f"bundle {self._identity[:12]} failed its trial: {self.failed}. Bundle {former[:12]} is in place: "
                "start the station again."
            )
        elif kind is None or not self.inspecting:
            _mark(self._settings, self._identity, running=False)

    def _pass(self) -> None:
        parts, folder = self._settings.bundle.trial_parts, self._settings.paths.bundles
        try:
            with changing(folder) as state:
                if state and state.trial and state.current == self._identity:
                    passed = Event(bundle=state.current, result="passed", why=f"{parts} parts", at=now())
                    save(folder, state.model_copy(update={"trial": None, "last": passed}))
            log.info("bundle %s passed its trial of %d parts", self._identity[:12], parts)
        except (OSError, InstalledError) as error:
            log.warning("the trial is passed, but that cannot be written down: %s", error)


def begin(settings: Settings) -> tuple[Path, Trial | None]:
    """The installed bundle, and its trial where it is on one, which is then marked as running.

    Where the last start of the trial ended without notice, the former bundle comes back first.

    Raises:
        InstalledError: nothing is installed.

    """
    folder = settings.paths.bundles
    state = _settled(folder)
    if state.trial and state.trial.running:
        try:
            switch_back(settings, state.current, "the station ended without notice: a crash, a kill or a power cut")
            state = installed_now(folder)
        except (BundleError, OSError) as error:
            log.error("the station ended without notice during the trial, and goes on with it: %s", error)  # noqa: TRY400
    if state.trial is None:
        return archive(folder, state.current), None
    _mark(settings, state.current, running=True)
    return archive(folder, state.current), Trial(settings, state.current)


def _settled(folder: Path) -> State:
    """What is installed, with the links that belong to it where the disk takes them."""
    try:
        with changing(folder) as state:
            if state:
                return state
    except FileNotFoundError:
        pass  # there is no folder
    except OSError as error:
        log.warning("%s: %s", folder, error.strerror)
    return installed_now(folder)


def switch_back(settings: Settings, identity: str, why: str) -> str:
    """Put back what was in place before the bundle on trial. Returns its id.

    Raises:
        BundleError: that one is not sound, so the bundle on trial stays.
        OSError: the disk.

    """
    folder = settings.paths.bundles
    with changing(folder) as state:
        assert state
        if state.current != identity or state.trial is None:  # somebody else was faster
            return state.current
        back = state.trial
        open_bundle(settings, archive(folder, back.back_to))
        failed = Event(bundle=identity, result="failed", why=why, at=now())
        save(folder, State(current=back.back_to, previous=back.back_previous, last=failed))
    log.error("bundle %s failed its trial: %s; bundle %s is in place again", identity[:12], why, back.back_to[:12])
    return back.back_to


def _mark(settings: Settings, identity: str, *, running: bool) -> None:
    folder = settings.paths.bundles
    try:
        with changing(folder) as state:
            if state and state.trial and state.current == identity:
                trial = state.trial.model_copy(update={"running": running})
                save(folder, state.model_copy(update={"trial": trial}))
    except (OSError, InstalledError) as error:
        log.warning("%s: the trial cannot be marked: %s", folder, error)
