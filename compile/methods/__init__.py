"""The published methods, one readable file each."""
