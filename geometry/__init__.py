"""The 4D field: hash grid, space-time encoding, MLPs, implicit volume."""
