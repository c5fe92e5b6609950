"""Scans in files: each format in a module of its own, all of them as one kind of array (`edge.scans.read`)."""
