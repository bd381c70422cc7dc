"""A run's scenes to look at live: any stage from any side at any time, in a browser."""
