"""What pyproject.toml has no words for: each room of this checkout is a package of `animate124`."""

from setuptools import find_packages, setup

rooms = find_packages(exclude=["tests", "tests.*"])
setup(
    script_name="setup.py",  # this file, which is in no package
    packages=["animate124", *(f"animate124.{room}" for room in rooms)],
)
