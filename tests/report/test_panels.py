"""What the views are given: padding left out, dimensions summed, ledger grouped, layers in natural order."""

import dataclasses

import numpy as np
import pytest
import torch

from fxlrp.report.panels import Layout, digest
from tests.report.samples import SENTENCE, float_attribution, text_attribution


def test_padding_is_left_out_everywhere() -> None:
    mask = torch.ones(2, len(SENTENCE))
    mask[0, -4:] = 0
    mask[1, :3] = 0
    attribution = text_attribution([SENTENCE, SENTENCE], layers=2, mask=mask)
    right_padded, left_padded = digest(attribution)
    assert [piece.raw for piece in right_padded.panels[0].pieces] == SENTENCE[:-4]
    assert [piece.raw for piece in left_padded.panels[0].pieces] == SENTENCE[3:]
    np.testing.assert_array_equal(left_padded.panels[0].values, attribution.relevance[1, 3:].double().numpy())
    assert right_padded.layers is not None
    assert right_padded.layers.values.shape == (2, len(SENTENCE) - 4)


def test_layers_are_in_natural_order_and_summed_over_hidden() -> None:
    attribution = text_attribution([SENTENCE], layers=12)
    layers = digest(attribution)[0].layers
    assert layers is not None
    assert layers.prefix == "bert.encoder.layer."
    assert layers.names == tuple(str(n) for n in range(12))
    expected = attribution.at["bert.encoder.layer.10"][0].double().sum(-1)
    np.testing.assert_allclose(layers.values[10], expected.numpy())


def test_taps_of_other_shapes_have_no_row() -> None:
    attribution = text_attribution([SENTENCE], layers=1)
    attribution.at["pooler"] = torch.ones(1, 6)
    attribution.at["longer"] = torch.ones(1, len(SENTENCE) + 1, 6)
    layers = digest(attribution)[0].layers
    assert layers is not None
    assert layers.prefix + layers.names[0] == "bert.encoder.layer.0"
    assert len(layers.names) == 1


def test_ledger_groups_sum_to_the_explained_value() -> None:
    attribution = text_attribution([SENTENCE, SENTENCE], with_ledger=True, gap=0.25)
    for index, view in enumerate(digest(attribution)):
        sheet = view.ledger
        assert sheet is not None
        assert [group.leak for group in sheet.groups] == sorted(group.leak for group in sheet.groups)
        assert sheet.groups[0].kind == "input"
        for group in sheet.groups:
            assert group.amount == pytest.approx(sum(amount for _, amount in group.sources))
            sizes = [abs(amount) for _, amount in group.sources]
            assert sizes == sorted(sizes, reverse=True)
        parts = sheet.part(leak=False, inputs=True), sheet.part(leak=False), sheet.part(leak=True)
        assert sum(parts) == pytest.approx(sheet.total)
        assert all(abs(part) > 1e-6 for part in parts)
        assert sheet.total + sheet.gap == pytest.approx(float(attribution.explained[index]))
        assert sheet.gap == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("shape", "layout", "positions"),
    [
        ((2, 3, 8, 10), Layout.IMAGE, (8, 10)),
        ((2, 7), Layout.FEATURES, (7,)),
        ((2, 5, 4), Layout.TOKENS, (5,)),
        ((2,), Layout.FEATURES, (1,)),
    ],
)
def test_layout_follows_the_shape_and_keeps_the_sum(
    shape: tuple[int, ...], layout: Layout, positions: tuple[int, ...]
) -> None:
    relevance = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    panel = digest(float_attribution(relevance))[1].panels[0]
    assert panel.layout is layout
    assert panel.values.shape == positions
    assert panel.total == pytest.approx(float(relevance[1].sum()), rel=1e-5)


def test_every_attributed_input_has_a_panel() -> None:
    attribution = text_attribution([SENTENCE])
    attribution.inputs["decoder_input_ids"] = torch.tensor([[1.0, -2.0]])
    panels = digest(attribution)[0].panels
    assert [panel.name for panel in panels] == ["input_ids", "decoder_input_ids"]
    assert [piece.text for piece in panels[1].pieces] == ["0", "1"]


def test_tokens_of_another_length_are_not_shown_as_names() -> None:
    attribution = dataclasses.replace(text_attribution([SENTENCE]), tokens=[["just", "two"]])
    assert digest(attribution)[0].panels[0].pieces[0].text == "0"
