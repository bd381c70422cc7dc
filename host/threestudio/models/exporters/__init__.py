"""Exporters: a trained scene -> files."""
