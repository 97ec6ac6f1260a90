"""The code in README.md and in the manual runs, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fxlrp
from tests.docs import pages
from tests.repository.sources import CORRIDOR

PAGES = [
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"),
    *sorted(str(path.relative_to(pages.ROOT)) for path in (pages.ROOT / "docs").rglob("*.md")),
]
WITH_CODE = [name for name in PAGES if "```python" in (pages.ROOT / name).read_text(encoding="utf-8")]
#: Pages of rulesets are written from two texts: in a plain run one page of each kind of answer stands for all.
SAMPLES = ("attnlrp", "chefer2021-vit", "lat", "relp", "wu-ong2020")


def _case(name: str) -> Any:
    slow = name.startswith("docs/rulesets/") and Path(name).stem not in SAMPLES
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize("name", [_case(name) for name in WITH_CODE])
def test_code_runs_and_prints_what_the_page_says(name: str, tmp_path: Path) -> None:
    for block, printed, expected in pages.run(pages.ROOT / name, tmp_path):
        if expected is not None:
            assert pages.same_output(printed, expected), f"{name}:{block.line} prints:\n{printed}"


def test_blocks_are_found_with_title_and_line() -> None:
    first, second = pages.blocks('a\n\n```yaml title="x.yaml"\nname: x\n```\n\n```python\nprint(1)\n```\n')
    assert (first.language, first.title, first.line) == ("yaml", "x.yaml", 4)
    assert (second.language, second.text, second.line, second.directly_after_previous) == (
        "python",
        "print(1)\n",
        8,
        True,
    )


def test_a_failing_block_fails_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        list(pages.run(page, tmp_path))
    assert failure.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("input +0.50  32 %", True),
        ("input   −0.50 32 %", False),
        ("inputs +0.50 32 %", False),
        ("input +0.50", False),
        ("input +0.53 32 %", False),
    ],
)
def test_output_is_compared_word_by_word(printed: str, same: bool) -> None:
    assert pages.same_output(printed, "input +0.50 32%") is same


def test_the_quick_start_is_the_example() -> None:
    readme = pages.blocks((pages.ROOT / "README.md").read_text(encoding="utf-8"))
    first = next(block for block in readme if block.language == "python")
    script = (pages.ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert script.split('"""\n', 1)[1].strip() == first.text.strip()
    assert len([line for line in first.text.splitlines() if line]) <= 10


def test_the_readme_lists_every_ruleset() -> None:
    section = (pages.ROOT / "README.md").read_text(encoding="utf-8").split("## Rulesets")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    assert sorted(re.findall(r"`([^`]+)`", " ".join(cells))) == fxlrp.rulesets()


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    page = pages.ROOT / name
    generated = ("reference/",)
    for link in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
        if not link.removeprefix("../").startswith(generated):
            assert (page.parent / link).exists(), f"{name} links to {link}"


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_no_folder_of_the_authors_machine(name: str) -> None:
    assert not re.search(r"(?<![\w.])/(home|work|tmp|root|Users)/", (pages.ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_what_is_named_exists(name: str) -> None:
    text = (pages.ROOT / name).read_text(encoding="utf-8")
    places = {word for quoted in re.findall(r"`([^`]+)`", text) for word in quoted.split() if "/" in word}
    assert len(places) >= 10
    for place in places - {"fxlrp/NAME/", "tests/NAME", "ARGS=tests/NAME`", "ARGS=tests/NAME", "site/", "dist/"}:
        assert any((pages.ROOT / base / place).exists() for base in ("", "fxlrp")), f"{name} names {place}"


def test_the_corridor_is_the_one_that_is_checked() -> None:
    text = (pages.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## One input")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    rooms = [room.strip("/") for row in rows for room in re.findall(r"`([^`]+)`", row)]
    assert rooms == list(CORRIDOR)


def test_every_target_of_make_is_there() -> None:
    made = set(re.findall(r"^([a-z]+):", (pages.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name in PAGES:
        text = (pages.ROOT / name).read_text(encoding="utf-8")
        assert {*re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE)} <= made, name
