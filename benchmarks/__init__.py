"""Measured tables: each module is a make target, prints its table and keeps it under results/."""
