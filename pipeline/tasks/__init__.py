"""The tasks: a file each. A new one is a file here, and a line in plan.py and presets.py."""
