"""One image and one sentence to a 4D scene: the tasks behind animate.py."""
