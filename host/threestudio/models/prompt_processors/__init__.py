"""Prompt processors: a sentence -> text embeddings."""
