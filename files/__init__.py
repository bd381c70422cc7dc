"""Whole files: read as they were written, or not at all."""
