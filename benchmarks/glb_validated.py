"""What the Khronos glTF validator says of GLB files.

npm install --no-save gltf-validator
python benchmarks/glb_validated.py outputs/<scene>/result/*.glb

Prints each file's errors, warnings and infos, and what they are; the errors of all of them together
are `glb.validator_errors`. Needs Node.js.
"""

import argparse
import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from animate124.files.figures import record
from animate124.pipeline.places import ROOT

SEVERITIES = ("errors", "warnings", "infos", "hints")
MOST = 1000  # issues of a file that are told one by one
VALIDATE = f"""
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[1]));
require('gltf-validator').validateBytes(bytes, {{maxIssues: {MOST}}})
  .then(report => console.log(JSON.stringify(report.issues)));
"""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+", help="GLB files")
    parser.add_argument("--figures", type=Path, help="figures.json to write into")
    return parser


def issues(path: Path) -> dict[str, Any]:
    """The validator's: numErrors, numWarnings, numInfos, numHints, messages.

    Raises:
        RuntimeError: Node.js or the package is missing, or the file can't be read.
    """
    packages = os.environ.get("NODE_PATH", str(ROOT / "node_modules"))
    command = ["node", "-e", VALIDATE, str(path)]
    done = subprocess.run(
        command, env={**os.environ, "NODE_PATH": packages}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(
            f"{path} wasn't validated: {done.stderr[-2000:]}\nThis needs Node.js, and in "
            f"{packages} (or where NODE_PATH says): npm install --no-save gltf-validator."
        )
    return json.loads(done.stdout)


def main() -> None:
    args = options().parse_args()
    total: Counter[str] = Counter()
    for path in args.files:
        found = issues(path)
        counts = {name: found[f"num{name.capitalize()}"] for name in SEVERITIES}
        total.update(counts)
        kinds = Counter(message["code"] for message in found["messages"])
        print(path, *(f"{n} {name}" for name, n in counts.items()), *kinds.items(), sep="  ")
    print(f"glb.validator_errors: {total['errors']}, of {len(args.files)} files")
    if args.figures:
        errors = {"glb.validator_errors": (total["errors"], "errors")}
        record(errors, f"python benchmarks/glb_validated.py, {len(args.files)} files", args.figures)


if __name__ == "__main__":
    main()
