"""Geometries: points in space -> density and features."""
