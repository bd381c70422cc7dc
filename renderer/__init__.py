"""Rays and frame times to images."""
