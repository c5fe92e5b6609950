"""The published methods, one readable file each."""

from edge.errors import BeltlineError


class FitError(BeltlineError):
    """The fit failed. The message says how, and what to try."""
