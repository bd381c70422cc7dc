"""A trained scene against the toy world's truth."""
