"""Checkpoints: reading, checking and writing weights that describe themselves."""
