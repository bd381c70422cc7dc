"""One image and one sentence to a 4D scene: the steps behind animate.py."""
