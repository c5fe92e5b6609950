"""The station on the box: capture, score, decide, act. Never imports torch."""
