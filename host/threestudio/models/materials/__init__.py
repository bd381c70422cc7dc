"""Materials: a geometry's features -> colour."""
