"""From a part's trigger to the verdict on it. What is not a proven ACCEPT is a REJECT or a FAULT with its reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from edge.frame import Frame, Score
from edge.front_end import FrameError
from edge.scorer import BadScoreError, Scorer, ScorerError
from edge.sources import CaptureError
from firmware_bridge.parts import Decision, Reason, Trigger, Verdict

log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """A verdict with what it was made from, where there was any."""

    verdict: Verdict
    frame: Frame | None = None
    score: Score | None = None
    picture: str = ""  # its name, for people; also where it could not be read


class Judge:
    """Bundle, threshold and recipe under which parts are judged."""

    def __init__(
        self,
        scorer: Scorer,
        recipe: str,
        threshold: float | None = None,
        *,
        fallback: Scorer | None = None,
        instead_of_engine: str = "",
    ) -> None:
        """What parts are judged with.

        Args:
            scorer: closed by the caller, as `scorer` then is.
            recipe: its name.
            threshold: the recipe's own, which wins over the bundle's.
            fallback: stands by where the scorer has an engine.
            instead_of_engine: why the scorer has none, where one was chosen.

        """
        self.scorer, self.recipe, self.fallback, self.instead_of_engine = scorer, recipe, fallback, instead_of_engine
        self._has_own, self.threshold = threshold is not None, scorer.threshold if threshold is None else threshold

    def fall_back(self, why: str) -> bool:
        """Give up the engine until the next start; False where nothing stands by for it."""
        if self.fallback is None:
            return False
        log.error("the engine is given up, %s goes on: %s", self.fallback.runtime.name, why)
        failed, self.scorer, self.fallback = self.scorer, self.fallback, None
        self.instead_of_engine = why
        if not self._has_own:
            self.threshold = self.scorer.threshold  # each graph has one
        failed.close()
        return True

    def judge(self, trigger: Trigger, take_frame: Callable[[Trigger], Frame]) -> Judged:
        """Take the part's frame, score it and decide. Reject when score > threshold."""
        start_ns = time.monotonic_ns()
        times_ms = {"queue": (start_ns - trigger.at_ns) / 1e6}
        if trigger.heard_ns is not None:
            times_ms["hand_over"] = (start_ns - trigger.heard_ns) / 1e6
        frame: Frame | None = None
        try:
            frame = take_frame(trigger)
            times_ms["frame"] = (time.monotonic_ns() - start_ns) / 1e6
            if frame.part_id != trigger.part_id:
                raise CaptureError(Reason.AMBIGUOUS_FRAME, f"the source gave the picture of {frame.part_id}")
            score = self.scorer.score(frame.image, frame.scan)
        except CaptureError as error:
            return self._fault(trigger, error.reason, times_ms, error, frame)
        except FrameError as error:
            return self._fault(trigger, Reason.BAD_FRAME, times_ms, error, frame)
        except BadScoreError as error:
            return self._fault(trigger, Reason.BAD_SCORE, times_ms, error, frame)
        except ScorerError as error:
            return self._fault(trigger, Reason.SCORER_FAILED, times_ms, error, frame)
        times_ms.update(score.times_ms)
        accept = score.value <= self.threshold
        decision = Decision.ACCEPT if accept else Decision.REJECT
        reason = Reason.SCORE_BELOW_THRESHOLD if accept else Reason.SCORE_ABOVE_THRESHOLD
        return Judged(self._verdict(trigger, decision, reason, score.value, times_ms), frame, score, frame.name)

    def refuse(self, trigger: Trigger, reason: Reason) -> Judged:
        """A FAULT without looking."""
        return Judged(self._verdict(trigger, Decision.FAULT, reason, None, {}))

    def _fault(
        self, trigger: Trigger, reason: Reason, times_ms: dict[str, float], error: Exception, frame: Frame | None
    ) -> Judged:
        if frame:
            picture, what = frame.name, f"{frame.name}: {error}"
        else:  # what could not be read names its own file
            picture, what = error.picture if isinstance(error, CaptureError) else "", str(error)
        log.warning("part %s: %s: %s", trigger.part_id, reason.value, what)
        return Judged(self._verdict(trigger, Decision.FAULT, reason, None, times_ms), frame, picture=picture)

    def _verdict(
        self, trigger: Trigger, decision: Decision, reason: Reason, score: float | None, times_ms: dict[str, float]
    ) -> Verdict:
        times_ms["total"] = (time.monotonic_ns() - trigger.at_ns) / 1e6
        return Verdict(trigger.part_id, decision, reason, score, self.threshold, self.recipe, times_ms)
