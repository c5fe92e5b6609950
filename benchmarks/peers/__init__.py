"""Our students beside the models that anomalib exports, timed in one run."""
