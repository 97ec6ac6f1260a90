"""The HTML report: escaped, self-contained, and its numbers are the attribution's."""

import re
from html.parser import HTMLParser

import pytest
import torch

from fxlrp.report import render_fragment, render_html
from tests.report.samples import EVIL, SENTENCE, URL, RulesetInfo, float_attribution, info, text_attribution

VOID = {"meta", "img", "br", "rect", "line"}


class Elements(HTMLParser):
    """Every start tag with its attributes; fails on tags left open or closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def ledger_rows(page: str, row: str) -> list[str]:
    """The source of the ledger rows of class `row`, each from its tag to that of the next row."""
    return [part for part in page.split('<tr role="row" class="')[1:] if part.startswith((row + '"', row + " "))]


def numbers(page: str, row: str) -> list[float]:
    """The machine-readable amounts of the ledger rows of class `row`."""
    return [float(re.findall(r'<data value="([^"]+)">', part)[0]) for part in ledger_rows(page, row)]


def printed(page: str, row: str) -> list[float]:
    """The amounts of the ledger rows of class `row` as a reader sees them."""
    texts = [re.findall(r"<data [^>]*>([^<]+)</data>", part)[0] for part in ledger_rows(page, row)]
    return [float(text.replace("−", "-")) for text in texts]


def test_everything_is_escaped() -> None:
    identity = RulesetInfo(EVIL, version=EVIL, hash=EVIL, title=EVIL, citation=EVIL, url='https://x/"><script>')
    attribution = text_attribution(
        [["[CLS]", EVIL, '"><img src=x onerror=alert(1)>', "'"]], identity=identity, label=EVIL
    )
    attribution.at[EVIL] = torch.ones(1, 4, 2)
    page = render_html([attribution, attribution], title=EVIL)
    assert "alert(1)" in page
    tags = Elements(page).tags
    assert not [tag for tag, _ in tags if tag in {"script", "img", "iframe", "object", "link"}]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_the_escape_test_can_fail() -> None:
    page = render_html([text_attribution([["[CLS]", EVIL]])])
    assert EVIL not in page
    unescaped = page.replace("&lt;", "<").replace("&gt;", ">")
    assert EVIL in unescaped


def test_no_resource_is_loaded_from_anywhere() -> None:
    image = float_attribution(torch.randn(1, 3, 4, 4), with_ledger=True)
    for attributions in ([text_attribution([SENTENCE], layers=3, with_ledger=True)] * 2, [image]):
        page = render_html(attributions)
        for tag, attributes in Elements(page).tags:
            for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                address = attributes.get(name)
                assert address is None or address.startswith("data:image/png") or (tag, name) == ("a", "href")
        assert "url(" not in page
        assert "@import" not in page
        assert "default-src 'none'" in page


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", None, "arxiv"])
def test_only_web_addresses_become_links(url: str | None) -> None:
    page = render_html([text_attribution([SENTENCE], identity=info("mine", url=url))])
    assert "<a " not in page
    assert "Achtibat" in page


def test_a_citation_is_a_link() -> None:
    page = render_html([text_attribution([SENTENCE])])
    links = [attributes["href"] for tag, attributes in Elements(page).tags if tag == "a"]
    assert links == [URL]


def test_ledger_rows_sum_to_the_total_and_the_gap_closes_the_rest() -> None:
    attribution = text_attribution([SENTENCE], with_ledger=True, gap=0.25)
    page = render_html([attribution])
    kinds, (total,), (explained,), (gap,) = (numbers(page, row) for row in ("kind", "total", "explained", "gap"))
    assert len(kinds) == 6
    assert sum(kinds) == pytest.approx(total)
    assert total + gap == pytest.approx(explained)
    assert gap == pytest.approx(0.25)
    assert explained == pytest.approx(float(attribution.explained[0]))
    # What is printed is what is meant, to the decimals printed.
    assert printed(page, "kind") == pytest.approx(kinds, abs=0.005)
    assert sum(printed(page, "kind")) == pytest.approx(printed(page, "total")[0], abs=0.005 * 7)


def test_a_ledger_that_does_not_close_says_so() -> None:
    closed = render_html([text_attribution([SENTENCE], with_ledger=True, gap=1e-9)])
    leaky = render_html([text_attribution([SENTENCE], with_ledger=True, gap=0.25)])
    assert "is unaccounted for" in leaky
    assert "is unaccounted for" not in closed
    assert "is rounding" in closed


def test_colour_and_value_of_every_token() -> None:
    attribution = text_attribution([SENTENCE])
    spans = [
        attributes
        for tag, attributes in Elements(render_html([attribution])).tags
        if tag == "span" and (attributes.get("class") or "").startswith("t ")
    ]
    relevance = attribution.relevance[0].double()
    assert len(spans) == len(SENTENCE)
    for span, token, value in zip(spans, SENTENCE, relevance.tolist(), strict=True):
        classes, style, title = span["class"] or "", span["style"] or "", span["title"] or ""
        assert classes.split()[1] == ("n" if value < 0 else "p")
        assert float(style.removeprefix("--a:")) == pytest.approx(abs(value) / float(relevance.abs().max()), abs=1e-3)
        assert title.startswith(token)
        assert float(title.removeprefix(token).replace("−", "-")) == pytest.approx(value, rel=0.01)


def test_tokens_of_one_word_stand_together() -> None:
    page = render_html([text_attribution([["[CLS]", "un", "##forget", "##table", "film"]])])
    words = re.findall(r'<span class="w">(.*?)</span></span>', page, re.DOTALL)
    assert [re.findall(r'">([^<]+) <small>', word) for word in words] == [
        ["[CLS]"],
        ["un", "forget", "table"],
        ["film"],
    ]


def test_every_layer_has_its_own_colour_scale() -> None:
    attribution = text_attribution([["[CLS]", "good", "film"]])
    attribution.at["block.0"] = torch.tensor([[[0.1], [-0.2], [0.0]]])
    attribution.at["block.1"] = torch.tensor([[[50.0], [0.0], [0.0]]])
    (table,) = re.findall(r'<table class="map">.*?</table>', render_html([attribution]), re.DOTALL)
    cells = re.findall(r'<td class="(\w)" style="--a:([\d.]+)"', table)
    assert [(sign, float(strength)) for sign, strength in cells] == [
        *(("p", 0.5), ("n", 1.0), ("p", 0.0)),
        *(("p", 1.0), ("p", 0.0), ("p", 0.0)),
    ]
    assert re.findall(r'<td class="amount">([\d.]+)</td>', table) == ["0.200", "50.00"]


def test_several_rulesets_stand_side_by_side() -> None:
    names = ["attnlrp", "cp-lrp", "gradient"]
    page = render_html([text_attribution([SENTENCE], ruleset=name, with_ledger=True) for name in names])
    assert re.findall(r"<figcaption><strong>([\w-]+)</strong>", page) == names
    (overview,) = re.findall(r'<table class="overview">.*?</table>', page, re.DOTALL)
    assert re.findall(r'<th scope="col">([\w-]+)</th>', overview) == names


def test_every_sample_of_a_batch_has_its_section() -> None:
    page = render_html([text_attribution([SENTENCE] * 3)])
    assert page.count('<section class="sample"') == 3


@pytest.mark.parametrize("count", [1, 39, 41, 97, 600])
def test_any_length_renders(count: int) -> None:
    Elements(render_html([text_attribution([["word"] * count], layers=2)]))


def test_zero_relevance_and_nan_render() -> None:
    Elements(render_html([float_attribution(torch.zeros(1, 5), with_ledger=True)]))
    Elements(render_html([float_attribution(torch.full((1, 5), torch.nan), with_ledger=True)]))


def test_a_fragment_has_its_own_style_and_touches_nothing_else() -> None:
    fragment = render_fragment([text_attribution([SENTENCE], with_ledger=True)])
    assert "<html" not in fragment
    (style,) = re.findall(r"<style>(.*?)</style>", fragment, re.DOTALL)
    rules = re.sub(r"/\*.*?\*/|@media[^{]+\{", "", style, flags=re.DOTALL)
    selectors = re.findall(r"([^{}]+)\{", rules)
    stray = [part for each in selectors for part in each.split(",") if not part.strip().startswith(".fxlrp")]
    assert stray == []


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        render_html([])
    with pytest.raises(ValueError, match="same batch"):
        render_html([text_attribution([SENTENCE]), text_attribution([SENTENCE] * 2)])
