"""Score distillation from frozen diffusion models."""
