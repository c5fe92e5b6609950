"""The numbers that a line needs, as pure functions from arrays to numbers with their uncertainty."""
