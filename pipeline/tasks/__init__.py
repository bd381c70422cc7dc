"""The tasks: a file each. A new one is a file here, a line of LEAVES in plan.py, and its name and
cost in presets.py."""
