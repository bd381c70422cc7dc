"""Cameras, frame times, reference image, batches."""
