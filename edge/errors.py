"""Errors that are meant for people: the command line shows the message alone, without a traceback."""

from __future__ import annotations


class BeltlineError(Exception):
    """Something outside the program is wrong. The message names the thing, the value and the next step."""

    exit_code = 1


class BundleError(BeltlineError):
    """A bundle cannot be trusted or read. The message names the file, the value and the next step."""
