"""What people read leads somewhere: links, anchors, commands' files, and the citation's fields."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")],
    key=lambda page: page.as_posix(),
)
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "extending.md"])  # names new ones
def test_scripts_and_rooms_that_are_named_are_there(page):
    named = re.findall(
        r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml|cu|toml)|[a-z_-]+/(?:[\w-]+/)*)`", page.read_text()
    )
    rooms = {path.name for path in ROOT.iterdir()} - {"outputs"}  # runs write there
    missing = [n for n in named if n.split("/")[0] in rooms and not (ROOT / n).exists()]
    assert not missing


def test_the_citation_names_the_method_and_the_host():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0"
    titles = " ".join(reference["title"] for reference in cited["references"])
    assert "Animate124" in titles and "threestudio" in titles
