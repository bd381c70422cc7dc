"""The training step, its losses and what it saves."""
