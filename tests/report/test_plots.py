"""Pictures by matplotlib: what they show is the result's, and what cannot be drawn is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fxlrp
from fxlrp.readout import heads as heads_module
from fxlrp.readout.heads import head_relevance
from fxlrp.report.pixels import overlay_data_uri
from fxlrp.shipped.checkpoints import load_checkpoint
from tests.report.samples import SENTENCE, float_attribution, text_attribution

pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")

from fxlrp import plots


def written(figure: object) -> list[str]:
    """Every text of a figure."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def overlapping(figure: object, axes: object) -> list[tuple[str, str]]:
    """Texts of the axes that lie over one another once the figure is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in axes.texts]
    return [(a, b) for n, (a, x) in enumerate(boxes) for b, y in boxes[n + 1 :] if x.overlaps(y)]


def test_tokens_stand_apart_with_their_numbers(tmp_path: Path) -> None:
    result = text_attribution([[*SENTENCE * 3, "costs$5$", "W" * 12]])
    figure = plots.tokens(result)
    texts = written(figure)
    assert "unforgettable"[:2] in texts
    assert len([text for text in texts if text[0] in "+−0"]) >= len(SENTENCE) * 3
    assert overlapping(figure, figure.axes[0]) == []
    figure.savefig(tmp_path / "tokens.png")


def test_layers_are_rows() -> None:
    result = text_attribution([SENTENCE], layers=3)
    figure = plots.layers_by_tokens(result)
    (shown,) = figure.axes[0].images
    values = np.asarray(shown.get_array())
    assert values.shape == (3, len(SENTENCE))
    assert np.abs(values).max(1) == pytest.approx(np.ones(3))
    with pytest.raises(fxlrp.InputError, match="no layers"):
        plots.layers_by_tokens(text_attribution([SENTENCE]))


def test_an_image_lies_below_its_relevance() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[..., :4] = 1
    relevance = torch.zeros(1, 3, 8, 8)
    relevance[..., 0, 0], relevance[..., 7, 7] = 1, -1
    result = replace(float_attribution(relevance), picture=image, image_size=(8, 8))
    figure = plots.image(result, mask=torch.ones(8, 8).triu())
    grey, _, coloured = (np.asarray(each.get_array()) for each in figure.axes[0].images)
    assert (grey[0, 0], grey[0, 7]) == (1.0, 0.45)
    assert coloured[0, 0, 3] == coloured[7, 7, 3] == pytest.approx(0.9)
    assert coloured[0, 0, 0] > coloured[7, 7, 0]  # red, then blue
    assert coloured[3, 3, 3] == 0
    other = plots.image(result, picture=1 - image[0])
    assert np.asarray(other.axes[0].images[0].get_array())[0, 0] == 0.45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(4, 4)}, "A mask is"),
        ({"picture": torch.ones(3, 4, 4)}, "A picture is"),
        ({"sample": 3}, "out of range"),
    ],
)
def test_what_does_not_fit_an_image(options: dict[str, object], message: str) -> None:
    result = replace(float_attribution(torch.ones(1, 3, 8, 8)), image_size=(8, 8))
    with pytest.raises(fxlrp.InputError, match=message):
        plots.image(result, **options)


def test_a_text_is_no_image_and_an_image_no_text() -> None:
    with pytest.raises(fxlrp.InputError, match="pixel or patch"):
        plots.image(text_attribution([SENTENCE]))
    with pytest.raises(fxlrp.InputError, match="tokens draws text"):
        plots.tokens(float_attribution(torch.ones(1, 3, 8, 8)))


def test_agreement_has_its_numbers() -> None:
    found = fxlrp.Comparison({name: text_attribution([SENTENCE], ruleset=name, seed=n) for n, name in enumerate("ab")})
    texts = written(plots.agreement(found))
    assert texts.count("1.00") >= 2
    assert texts.count(f"{float(found.agreement[0, 1]):.2f}".replace("-", "−")) == 2


@pytest.mark.parametrize(("ruleset", "share"), [("cp-lrp", 1.0), ("attnlrp", 0.5), ("ali2022", 1.0)])
def test_heads_take_what_they_give(classifier: Path, ruleset: str, share: float) -> None:
    """A v is linear in v: with A constant all relevance of the outputs is that of the values; AttnLRP gives A half."""
    model, tokenizer = load_checkpoint(classifier)
    lrp = fxlrp.convert(model.double(), ruleset)
    inputs = tokenizer(["an unforgettable film", "a bad film in"], return_tensors="pt", padding=True)
    taken, given = (head_relevance(lrp.conversion, inputs, target=1, of=of) for of in ("values", "outputs"))
    assert list(taken) == [f"bert.encoder.layer.{n}.attention.self" for n in range(2)]
    for place, values in taken.items():
        assert values.shape == given[place].shape == (2, 2, inputs["input_ids"].shape[1])
        torch.testing.assert_close(values.sum(-1), share * given[place].sum(-1))
        assert float(values.abs().sum()) > 1e-6


def test_heads_of_the_last_layer_give_to_the_token_that_is_read(classifier: Path) -> None:
    model, tokenizer = load_checkpoint(classifier)
    lrp = fxlrp.convert(model.double(), "cp-lrp")
    *_, last = head_relevance(lrp.conversion, tokenizer("a film", return_tensors="pt"), of="outputs").values()
    assert float(last[..., 1:].abs().max()) == 0
    assert float(last[..., 0].abs().min()) > 0


def test_heads_that_are_mixed_up_are_noticed(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = heads_module.sites
    monkeypatch.setattr(heads_module, "sites", lambda task: [replace(s, output=s.scores) for s in original(task)])
    with pytest.raises(AssertionError):
        test_heads_take_what_they_give(classifier, "ali2022", 1.0)


def test_heads_are_drawn_and_refused(classifier: Path) -> None:
    model, tokenizer = load_checkpoint(classifier)
    inputs = tokenizer(["an unforgettable film", "bad"], return_tensors="pt", padding=True)
    figure = plots.heads_by_tokens(fxlrp.convert(model, "attnlrp"), inputs, 1, tokenizer=tokenizer)
    assert [np.asarray(axes.images[0].get_array()).shape for axes in figure.axes[:2]] == [(2, 3), (2, 3)]
    with pytest.raises(fxlrp.InputError, match="of='keys'"):
        head_relevance(fxlrp.convert(model, "attnlrp").conversion, inputs, of="keys")
    with pytest.raises(fxlrp.InputError, match="no attention"):
        head_relevance(fxlrp.convert(torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()).conversion, torch.ones(1, 3))


def test_negative_pixels_are_striped_and_the_picture_is_kept() -> None:
    import base64
    import io

    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    values = np.array([[1.0, -1.0], [0.0, 0.0]])
    grey = np.array([[0.5, 0.5], [0.0, 1.0]])
    address = overlay_data_uri(values, grey).removeprefix("data:image/png;base64,")
    picture = np.asarray(pil.open(io.BytesIO(base64.b64decode(address))).convert("RGB")).astype(float)
    quarters = picture.reshape(2, 128, 2, 128, 3).swapaxes(1, 2)
    assert len(np.unique(quarters[0, 0].reshape(-1, 3), axis=0)) == 1  # positive: one colour
    assert len(np.unique(quarters[0, 1].reshape(-1, 3), axis=0)) == 2  # negative: striped
    assert quarters[0, 0][..., 0].mean() > quarters[0, 0][..., 2].mean()
    assert quarters[0, 1][..., 2].mean() > quarters[0, 1][..., 0].mean()
    assert (quarters[1, 0] == 115).all()  # black, drawn pale
    assert (quarters[1, 1] == 255).all()


def test_the_picture_is_saved_with_the_result(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2)).eval()
    image = torch.rand(1, 3, 8, 8)
    result = fxlrp.attribute(model, image, ruleset="epsilon")
    assert torch.equal(result.picture, image)
    result.save(tmp_path / "result")
    assert torch.equal(fxlrp.Attribution.load(tmp_path / "result").picture, image)
    assert result.to_html().count("data:image/png") == 2  # the image, and its relevance over it
