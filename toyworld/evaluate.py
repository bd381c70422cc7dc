"""The old name of the command `python -m animate124.evaluation.suite`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("animate124.evaluation.suite", run_name="__main__")
