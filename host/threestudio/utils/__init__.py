"""Helpers that extensions import: config, schedules, checkpoints, saving, small maths."""
