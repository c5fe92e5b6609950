"""Frozen trunks: pictures to maps that methods are fitted on."""

from edge.errors import BeltlineError


class BackboneError(BeltlineError):
    """A backbone cannot be had as asked for. The message says which, why and what to do."""
