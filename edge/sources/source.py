"""What a source of pictures is, whatever it reads from."""

from __future__ import annotations

from typing import Protocol

from edge.errors import BeltlineError
from edge.frame import Frame
from firmware_bridge.parts import Reason, Trigger


class SourceError(BeltlineError):
    """The source cannot work as it is set up. The message names it and the next step."""


class CaptureError(Exception):
    """No picture that could be judged: the part is a FAULT with this reason. `picture`: its file, where it has one."""

    def __init__(self, reason: Reason, message: str, picture: str = "") -> None:
        super().__init__(message)
        self.reason, self.picture = reason, picture


class PictureSource(Protocol):
    """`expect`, `counters` and `problem` come from other threads than `frame`."""

    @property
    def problem(self) -> str:
        """What keeps it from giving pictures now, with the next step; empty while it is well."""
        ...

    def open(self) -> None:
        """Start. A device that is away is tried again by itself; only what can never work raises SourceError."""
        ...

    def close(self) -> None: ...

    def expect(self, trigger: Trigger) -> None:
        """A part passed the photo-eye. Each trigger is expected once, in order, before its frame is asked for."""
        ...

    def frame(self, trigger: Trigger, timeout_s: float) -> Frame | None:
        """The picture of this part; None while it may still come.

        Raises:
            CaptureError: it will not come, or is not certain to be of this part, or is unreadable.

        """
        ...

    def counters(self) -> dict[str, int]:
        """Numbers by cause: frames, and what was lost and why."""
        ...
