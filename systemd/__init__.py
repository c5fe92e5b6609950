"""Unit files and install data, shipped as package data."""
