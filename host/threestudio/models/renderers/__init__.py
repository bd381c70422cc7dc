"""Renderers: rays -> images."""
