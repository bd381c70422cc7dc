"""How much of a picture its subject may cover: less is none, more is a photo without a cut-out."""

SMALLEST_SHARE, LARGEST_SHARE = 0.002, 0.98
