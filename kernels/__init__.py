"""CUDA programs that are compiled when they are first used."""
