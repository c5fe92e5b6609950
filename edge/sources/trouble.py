"""A source's lasting problem: one warning when it begins, one line when it is over, and its text in between."""

from __future__ import annotations

import logging


class Trouble:
    def __init__(self, log: logging.Logger, source: str) -> None:
        """`source`: what to name in the log."""
        self._log, self._source = log, source
        self.problem = ""

    def begins(self, problem: str) -> None:
        """`problem`: what is wrong and what to do. While one lasts, a further one only takes its place."""
        if not self.problem:
            self._log.warning("%s: %s", self._source, problem)
        self.problem = f"{self._source}: {problem}"

    def over(self) -> None:
        if self.problem:
            self._log.info("%s: gives pictures again", self._source)
            self.problem = ""
