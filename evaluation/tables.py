"""The suite's figures: means, the table of benchmarks/toyworld.md, and benchmarks/figures.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files.figures import record
from ..pipeline.request import FIELDS, GRID

Row = Mapping  # what suite.evaluate returns of a subject
UNITS = {  # of the means that go into figures.json
    "identity_share": "share",
    "identity_share_worst": "share",
    "sharpness": "ratio",
    "named": "of 8",
    "motion_energy": "ratio",
    "novel_view_psnr": "dB",
    "reference_psnr": "dB",
    "minutes": "min",
}
COLUMNS = {  # of the table: heading -> key of a row and how it is written
    "identity": ("identity_share", ".2f"),
    "worst": ("identity_share_worst", ".2f"),
    "sharpness": ("sharpness", ".2f"),
    "specks": ("specks", ".4f"),
    "motion energy": ("motion_energy_ratio", ".2f"),
    "novel views": ("novel_view_psnr", ".2f"),
    "reference": ("reference_psnr", ".2f"),
    "minutes": ("minutes", ".1f"),
    "without 3D prior": ("novel_view_psnr_without_3d_prior", ".2f"),
    "kept": ("motion_kept", ".2f"),
    "jitter": ("temporal_jitter", ".2f"),
}


def minutes(row: Row) -> float:
    """Of all tasks; looking at the result isn't counted."""
    return sum(row["seconds"].values()) / 60


def means(rows: Sequence[Row]) -> dict[str, float]:
    """Over subjects, the figures that UNITS names; `named` is how many are named rightly."""
    asked = {"motion_energy": "motion_energy_ratio"}
    found = {
        key: statistics.mean(row[asked.get(key, key)] for row in rows)
        for key in UNITS
        if key not in ("named", "minutes")
    }
    right = sum(row["named"] == row["motion"] for row in rows)
    return {**found, "named": right, "minutes": statistics.mean(map(minutes, rows))}


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a subject and field, and the means of each field."""
    every = [{**row, "minutes": minutes(row)} for row in rows]
    columns = {k: v for k, v in COLUMNS.items() if all(v[0] in row for row in every)}
    lines = [line("subject", "field", "named as", *columns, "drift, stage 2 -> 3")]
    lines.append("|---" * (len(columns) + 4) + "|")

    def add(name: str, field: str, named: str, some: Sequence[Row]) -> None:
        numbers = [
            f"{statistics.mean(r[key] for r in some):{form}}" for key, form in columns.values()
        ]
        drift = [f"{statistics.mean(r['identity_drift'][k] for r in some):.3f}" for k in (0, 1)]
        lines.append(line(name, field, named, *numbers, " -> ".join(drift)))

    for field in FIELDS:
        mine = [row for row in every if row["field"] == field]
        for row in mine:
            named = f"{row['named']} {row['motion_score']:.2f}"
            add(f"{row['species']} {row['seed']}, {row['motion']}", field, named, [row])
        if mine:
            right = sum(row["named"] == row["motion"] for row in mine)
            add("**mean**", field, f"{right} of {len(mine)}", mine)
    return "\n".join(lines)


def write_table(path: Path, budget: str, rows: Sequence[Row]) -> None:
    """Puts the table under its budget's heading; what stands there before goes."""
    text = path.read_text() if path.exists() else ""
    heading = f"## Budget {budget}\n"
    before, _, rest = text.partition(heading)
    _, mark, after = rest.partition("\n## ")
    path.write_text(f"{before}{heading}\n{table(rows)}\n{mark}{after}")


def write_figures(path: Path, budget: str, rows: Sequence[Row], words: Sequence[str]) -> None:
    """The means: `toy.<budget>.<key>`, and `toy.<budget>.grid.<key>` of the published method's
    field; device and commit are the rows' own.
    """
    command = " ".join(["python -m animate124.evaluation.suite --suite", *words])
    for field in FIELDS:
        mine = [row for row in rows if row["field"] == field]
        if not mine:
            continue
        prefix = f"toy.{budget}." + (f"{GRID}." if field == GRID else "")
        found = {f"{prefix}{key}": (value, UNITS[key]) for key, value in means(mine).items()}
        device, tree = (
            ", ".join(sorted({row[key] for row in mine})) for key in ("device", "commit")
        )
        record(found, command, path, device=device, tree=tree)
