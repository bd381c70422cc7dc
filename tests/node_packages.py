"""Packages from npm that judge or play our files, under Node."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "node_modules"


@functools.cache
def _environment() -> dict[str, str]:
    return {**os.environ, "NODE_PATH": os.environ.get("NODE_PATH", str(FOLDER))}


def run_node(script: str, *arguments: str, packages: tuple[str, ...]):
    """What a script (CommonJS) prints, as JSON; the test is skipped where Node or a package of
    its isn't there."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    there = "for (const p of process.argv.slice(1)) require.resolve(p)"
    asked = [node, "-e", there, *packages]
    if subprocess.run(asked, env=_environment(), capture_output=True).returncode:
        pytest.skip(f"needs npm packages: npm install --no-save {' '.join(packages)}")
    done = subprocess.run(
        [node, "-e", script, *arguments], env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


VALIDATE = """
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[1]));
require('gltf-validator').validateBytes(bytes, {maxIssues: 20})
  .then(report => console.log(JSON.stringify(report.issues)));
"""


def khronos_issues(path: Path) -> list[str]:
    """Errors and warnings of the Khronos glTF validator."""
    issues = run_node(VALIDATE, str(path), packages=("gltf-validator",))
    return [f"{m['code']} {m['pointer']}" for m in issues["messages"] if m["severity"] < 2]
