"""Systems: one training step and what belongs to it."""
