"""Prompts to text embeddings."""
