"""Backgrounds: ray directions -> colour."""
