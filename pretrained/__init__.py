"""Pretrained models: the only room that knows the hub, and what is kept of them on disk."""
