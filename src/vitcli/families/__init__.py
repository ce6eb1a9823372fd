"""Families of architectures as numbers: names, shapes, costs; without torch."""
