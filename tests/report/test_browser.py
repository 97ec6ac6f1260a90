"""The report as a browser lays it out, at a wide and a narrow width, in light and in dark."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fxlrp.report import render_html
from fxlrp.report.methods import methods_of
from tests.report import test_methods
from tests.report.samples import SENTENCE, float_attribution, text_attribution

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on PATH (Debian: apt-get install chromium)"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
DARK = "--blink-settings=preferredColorScheme=0"
# What lies outside the window, unless it scrolls within a region of its own, and what the page looks like.
PROBE = """<script>
const outside = [...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > innerWidth + 1 && !element.closest(".scroll, .unseen");
});
parent.document.title = JSON.stringify({
  window: innerWidth,
  page: document.documentElement.scrollWidth,
  outside: outside.map(element => element.outerHTML.slice(0, 120)),
  background: getComputedStyle(document.body).backgroundColor,
});
</script>"""


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    def run(page: str, width: int, *flags: str) -> str:
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        command = [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1200",
            *flags,
        ]
        done = subprocess.run(
            [*command, (tmp_path / "page.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    return run


def probe(chromium: Callable[..., str], page: str, width: int, *flags: str) -> dict:
    """Render a copy of the page that may run one script, and return what the script saw.

    The copy lies in a frame: Chromium's own window cannot be narrower than 500 pixels.
    """
    allowed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    framed = html.escape(allowed.replace("</body>", PROBE + "</body>"))
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{framed}"></iframe>'
    dom = chromium(f"<!DOCTYPE html><title></title>{frame}", 1400, "--dump-dom", *flags)
    (title,) = re.findall(r"<title>([^<]*)</title>", dom)
    return json.loads(html.unescape(title))


def unfolded(page: str) -> str:
    """The page with everything that can be unfolded open."""
    return page.replace("<details", "<details open")


names = ("attnlrp", "cp-lrp", "ali2022", "conservative-residual")
PAGES = {
    "one ruleset": [text_attribution([SENTENCE], layers=4, with_ledger=True, gap=0.3)],
    "four rulesets": [text_attribution([SENTENCE] * 2, ruleset=name, layers=4, with_ledger=True) for name in names],
    "long": [text_attribution([SENTENCE * 20], layers=12, with_ledger=True)],
    "one long word": [text_attribution([["Donaudampfschifffahrtsgesellschaft" * 5] * 3], layers=2, with_ledger=True)],
    "image": [float_attribution(torch.randn(2, 3, 32, 32), with_ledger=True)] * 2,
    "features": [float_attribution(torch.randn(1, 40), with_ledger=True)],
}


def compared(count: int) -> str:
    """A page that compares so many rulesets, by two protocols."""
    found = test_methods.comparison(test_methods.NAMES[:count], label="W" * 30)
    return render_html(list(found.attributions.values()), methods=methods_of(found))


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("name", [*PAGES, "eight methods", pytest.param("two methods", marks=pytest.mark.slow)])
def test_nothing_sticks_out(chromium: Callable[..., str], name: str, width: int) -> None:
    page = render_html(PAGES[name]) if name in PAGES else compared(2 if name == "two methods" else 8)
    seen = probe(chromium, unfolded(page), width)
    assert seen["window"] == width
    assert seen["outside"] == []
    assert seen["page"] <= width


def test_the_probe_sees_what_sticks_out(chromium: Callable[..., str]) -> None:
    page = render_html(PAGES["one ruleset"]).replace("<footer>", '<footer style="width: 2000px">')
    assert probe(chromium, page, 420)["outside"]


def test_dark_mode_is_dark(chromium: Callable[..., str]) -> None:
    page = render_html(PAGES["one ruleset"])
    assert probe(chromium, page, 1280)["background"] == "rgb(255, 255, 255)"
    assert probe(chromium, page, 1280, DARK)["background"] == "rgb(21, 23, 27)"


@pytest.mark.parametrize(("width", "flags"), [(1280, []), (420, []), (420, [DARK])], ids=["wide", "narrow", "dark"])
def test_screenshot_shows_both_colours(
    chromium: Callable[..., str], tmp_path: Path, width: int, flags: list[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    shot = tmp_path / "shot.png"
    chromium(render_html(PAGES["four rulesets"]), width, f"--screenshot={shot}", *flags)
    picture = image.open(shot).convert("RGB")
    assert picture.size == (width, 1200)
    colours = [colour for count, colour in picture.getcolors(maxcolors=1 << 24) if count > 100]
    assert any(red > blue + 60 for red, _, blue in colours)
    assert any(blue > red + 60 for red, _, blue in colours)


def test_a_script_that_slipped_through_would_not_run(chromium: Callable[..., str]) -> None:
    page = render_html(PAGES["one ruleset"]).replace("</body>", "<script>document.title = 'ran'</script></body>")
    assert "<title>Relevance report</title>" in chromium(page, 420, "--dump-dom")
