"""docs/cache-dit.md names settings and tests that exist, and every setting that has a name in cache-dit."""

import re
from pathlib import Path

import pytest

from dit_compile.config import SETTINGS, parse_layer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cache-dit.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[[^]]*\]\((\.\./[^)]+)\)", TEXT)
TESTS = re.findall(r"\[`(test_\w+)`\]\(\.\./([^)]+)\)", TEXT)
SETTINGS_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.split("## Settings", 1)[1].split("\n## ", 1)[0].splitlines()
    if line.startswith("| `")
]


def test_every_setting_with_a_name_in_cache_dit_has_its_row() -> None:
    pairs = {(theirs.strip("`"), ours.strip("`")) for theirs, ours, _ in SETTINGS_ROWS}
    assert {(setting["peer"], name) for name, setting in SETTINGS.items() if setting["peer"]} <= pairs


@pytest.mark.parametrize("ours", [ours for _, ours, _ in SETTINGS_ROWS])
def test_what_a_row_says_is_accepted(ours: str) -> None:
    for code in re.findall(r"`([^`]+)`", ours):
        if re.fullmatch(r"\w+", code):
            assert code in SETTINGS
        elif re.fullmatch(r'\w+="\w[^"]*"(, \w+="\w+")*', code):
            values = dict(re.findall(r'(\w+)="([^"]+)"', code))
            assert parse_layer(values, where="option").items() >= values.items()
        else:
            assert re.match(r"torch\.compile|dit_compile\.\w+\(|options=", code), code


def test_links_lead_somewhere() -> None:
    assert len(LINKS) > 20
    assert [link for link in LINKS if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize(("name", "path"), TESTS)
def test_tests_exist(name: str, path: str) -> None:
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_readme_leads_here() -> None:
    assert "(docs/cache-dit.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
