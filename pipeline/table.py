"""Tables as people save them: CSV with commas, semicolons or tabs, in UTF-8, UTF-16 or
Windows-1252, with blank rows and columns. Anything else is an error that says how to save it.
"""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HOW = 'Save it as "CSV UTF-8 (comma delimited)", as spreadsheets call it.'
END_OF_LINE = re.compile(r"\r\n|\r|\n")
SEP = re.compile(r"sep=(.)(?:\r\n|\r|\n)", re.IGNORECASE)
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SPREADSHEETS = {  # how other files begin
    b"PK\x03\x04": "a spreadsheet (.xlsx, .ods) or another archive",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet (.xls)",
    b"%PDF": "a PDF",
    b"{\\rtf": "rich text",
}


class Row(NamedTuple):
    number: int  # as a spreadsheet counts: the head is row 1
    cells: dict[str, str]  # column -> text, without blank ones


def read(path: Path, needed: Sequence[str]) -> tuple[list[str], list[Row]]:
    """The columns and the rows that aren't blank.

    needed: columns that every table has; they tell how the head is divided.

    Raises:
        ValueError: no table of text, or one whose rows don't fit its head.
    """
    text = decode(path)
    told = SEP.match(text)  # Excel's own line about the delimiter
    text = text[told.end() :] if told else text
    head, delimiter = read_head(path, text, needed, told[1] if told else None)
    rows, wrong, number = [], [], 0
    records = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        for number, record in enumerate(records, 1):
            cells = [cell.strip() for cell in record]
            if number == 1 or not any(cells):
                continue
            beyond = [cell for cell in cells[len(head) :] if cell]
            beyond += [c for name, c in zip(head, cells, strict=False) if c and not name]
            if beyond:
                wrong.append(
                    f"row {number}: {beyond[0]!r} stands below no column's name. A cell with "
                    f"{DELIMITERS[delimiter]} in it needs quotes around it."
                )
            elif any("\n" in cell or "\r" in cell for cell in cells):
                wrong.append(f"row {number}: a cell goes on in the next line; is a quote missing?")
            else:
                named = zip(head, cells, strict=False)
                rows.append(Row(number, {name: cell for name, cell in named if name and cell}))
    except csv.Error as error:
        raise ValueError(f"{path}, row {number + 1}: {error}; is a quote missing?") from None
    if wrong:
        raise ValueError("\n  ".join([f"{path} can't be read:", *wrong]))
    return [name for name in head if name], rows


def decode(path: Path) -> str:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "isn't there"
        raise FileNotFoundError(f"There is no table {path}: it {what}. --batch takes a CSV file.")
    data = path.read_bytes()
    for start, what in SPREADSHEETS.items():
        if data.startswith(start):
            raise ValueError(f"{path} is {what}, not a CSV file. {HOW}")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding == "cp1252":
            odd = next(line.strip() for line in END_OF_LINE.split(text) if not line.isascii())
            print(
                f"{path} isn't UTF-8; as Windows-1252 it has {odd!r}. If that reads wrong: "
                f"{HOW[0].lower()}{HOW[1:]}",
                flush=True,
            )
        return text
    raise ValueError(f"{path} is no text that can be read (UTF-8, UTF-16, Windows-1252). {HOW}")


def read_head(
    path: Path, text: str, needed: Sequence[str], told: str | None
) -> tuple[list[str], str]:
    """The names in the first row, "" where a column has none, and what divides them."""
    first = END_OF_LINE.split(text, maxsplit=1)[:1]
    for delimiter in [told] if told in DELIMITERS else reversed(DELIMITERS):  # a comma at last
        head = [
            name.strip()
            for name in next(csv.reader(first, delimiter=delimiter, skipinitialspace=True), [])
        ]
        head = [name if "." in name else name.lower() for name in head]  # Image, PROMPT
        if set(needed) <= set(head):
            break
    else:
        missing = " and ".join(name for name in needed if name not in head)
        raise ValueError(
            f"{path} has the columns {', '.join(filter(None, head)) or '(none)'} in its first row; "
            f"{missing} should be there too."
        )
    twice = {name for name in head if name and head.count(name) > 1}
    if twice:
        raise ValueError(f"{path} has the column {', '.join(sorted(twice))} twice.")
    return head, delimiter
