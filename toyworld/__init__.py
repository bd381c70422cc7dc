"""The procedural world: characters, motions, ray-traced ground truth."""
