"""The documents: what they link to is there, and README stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "converters/README.md",
    "experiments/README.md",
    "internvlu_jax/evaluation/README.md",
    "internvlu_jax/inference/README.md",
    "internvlu_jax/parallel/README.md",
    "internvlu_jax/serving/README.md",
    "internvlu_jax/small_world/README.md",
    "tests/goldens/README.md",
]


def anchors(page: Path) -> set[str]:
    """Names of a page's headings in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short_and_names_what_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    house = text.partition("## The house")[2].partition("Imports go one way")[0]
    named = [name for row in re.findall(r"^\| (.*?) \|", house, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)]
    missing = [name for name in named if not any((ROOT / top / name).exists() for top in ("", "internvlu_jax"))]
    assert len(named) > 15 and not missing


# What a user of the released code meets, in its row; each is tested where it happens.
DIFFERENCES = {
    "photos": "EXIF",
    "transparency": "white",
    "12 and 16-bit grey": "8 bits",
    "short prompts in `text_image`": "attends to the padding",
    "a tokenizer's token that one file alone flags as special": "left out of text",
    "`flow_shift`": "3, whatever the checkpoint says",
}


def test_differences_that_users_meet_are_named():
    text = (ROOT / "converters/README.md").read_text(encoding="utf-8")
    table = text.partition("\n## Differences\n")[2].partition("\n## ")[0]
    rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("| ")}
    assert not {name: said for name, said in DIFFERENCES.items() if said not in rows.get(name, "")}
    assert "converters/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
