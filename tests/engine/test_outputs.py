"""What is explained is called by what it is: a class at a token, the start of an answer, a pixel, a hidden unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxlrp
from fxlrp.testing.weights import realistic
from tests.support.zoo import PATCHES, WORDS, ZOO, converted

IDS = torch.tensor([[0, 17, 3, 21, 2], [0, 9, 33, 3, 2]])
MASK = 3
NAMES = {0: "O", 1: "B-PER", 2: "B-LOC"}


class Spelling:
    """As much of a tokenizer as labels ask for: token 17 is "w17", token 3 the mask."""

    mask_token_id = MASK

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.convert_ids_to_tokens(ids))

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["[MASK]" if i == MASK else f"w{i}" for i in ids]


def bert(kind: str, **config: Any) -> nn.Module:
    made = transformers.BertConfig(**WORDS, **config)
    return realistic(getattr(transformers, f"BertFor{kind}")(made).eval(), 0)


def explained(model: nn.Module, inputs: Any, **options: Any) -> fxlrp.Attribution:
    return fxlrp.convert(model, "gradient").attribute(inputs, **options)


def test_a_class_at_a_token_has_its_name_and_its_token() -> None:
    model = bert("TokenClassification", id2label=NAMES)
    found = explained(model, {"input_ids": IDS}, target=(1, 2), tokenizer=Spelling())
    assert found.label == ["B-LOC at token 'w17' (position 1)", "B-LOC at token 'w9' (position 1)"]
    assert explained(model, {"input_ids": IDS}, target=(1, 2)).label == ["B-LOC at position 1"] * 2
    pair = explained(model, {"input_ids": IDS}, target=(1, 2), contrast=(1, 0), tokenizer=Spelling())
    assert pair.label[0] == "B-LOC at token 'w17' (position 1) minus O at token 'w17' (position 1)"


def test_start_and_end_of_an_answer() -> None:
    model = bert("QuestionAnswering")
    outputs = model(IDS)
    start = explained(model, {"input_ids": IDS}, target=3, tokenizer=Spelling())
    assert start.label == [
        "start of the answer at token 'w21' (position 3)",
        "start of the answer at token '[MASK]' (position 3)",
    ]
    torch.testing.assert_close(start.explained, outputs.start_logits[:, 3].detach())
    end = explained(model, {"input_ids": IDS}, target=("end_logits", 3), tokenizer=Spelling())
    assert end.label[0] == "end of the answer at token 'w21' (position 3)"
    assert end.target == [("end_logits", 3)] * 2
    torch.testing.assert_close(end.explained, outputs.end_logits[:, 3].detach())
    best = explained(model, {"input_ids": IDS}, target=("end_logits",))
    assert [place for _, place in best.target] == outputs.end_logits.argmax(1).tolist()


def test_an_answer_does_not_start_at_padding() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    model = bert("QuestionAnswering")
    nn.init.constant_(model.qa_outputs.bias, 1.0)
    for seed in range(3):
        ids = torch.randint(4, 90, (2, 5), generator=torch.Generator().manual_seed(seed))
        found = explained(model, {"input_ids": ids, "attention_mask": mask})
        assert all(mask[i, place] for i, place in enumerate(found.target))


def test_the_default_of_a_masked_model_is_the_masked_position() -> None:
    model = bert("MaskedLM")
    with torch.no_grad():
        best = [int(model(IDS).logits[i, place].argmax()) for i, place in enumerate((2, 3))]
    found = explained(model, {"input_ids": IDS}, tokenizer=Spelling())
    assert found.target == [(2, best[0]), (3, best[1])]
    assert found.label == [f"token 'w{best[0]}' at position 2", f"token 'w{best[1]}' at position 3"]
    assert explained(model, {"input_ids": IDS}, target=40, tokenizer=Spelling()).target == [(2, 40), (3, 40)]
    with pytest.raises(fxlrp.TargetError, match=r"must be \(position, class\)"):
        explained(model, {"input_ids": IDS}, target=40)


def test_of_several_masks_the_surest_and_of_none_all() -> None:
    model, ids = bert("MaskedLM"), torch.tensor([[0, MASK, MASK, 21, 2], [0, 9, 33, 8, 2]])
    with torch.no_grad():
        logits = model(ids).logits
    found = explained(model, {"input_ids": ids}, tokenizer=Spelling())
    assert logits[0][found.target[0]] == logits[0, 1:3].max()
    assert logits[1][found.target[1]] == logits[1].max()
    with pytest.raises(fxlrp.TargetError, match="sample 0 is a token, but that has a mask token at positions 1, 2"):
        explained(model, {"input_ids": ids}, target=40, tokenizer=Spelling())


def test_the_next_token_of_a_model_that_generates() -> None:
    inputs = ZOO["gpt2"].inputs(padding=None)
    found = converted("gpt2").attribute(inputs, target=5, tokenizer=Spelling())
    assert found.label == ["next token 'w5' after position 6"] * 2
    assert converted("gpt2").attribute(inputs, target=(2, 5)).label[0] == "next token 5 after position 2"


def test_classes_of_a_sequence_and_choices() -> None:
    model = bert("SequenceClassification", id2label=NAMES)
    assert explained(model, {"input_ids": IDS}, target=1).label == ["B-PER", "B-PER"]

    class Choices(nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.score = nn.Embedding(97, 4), nn.Linear(4, 1)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.score(self.embed(input_ids).mean(2))[..., 0]

    found = explained(Choices().eval(), {"input_ids": torch.stack([IDS, IDS], 1)}, target=1)
    assert found.label == ["choice 1", "choice 1"]


def test_hidden_units() -> None:
    model = realistic(transformers.BertModel(transformers.BertConfig(**WORDS)).eval(), 0)
    found = explained(model, {"input_ids": IDS}, target=(1, 7), tokenizer=Spelling())
    assert found.label == ["hidden unit 7 at token 'w17' (position 1)", "hidden unit 7 at token 'w9' (position 1)"]
    assert explained(model, {"input_ids": IDS}, target=("pooler_output", 7)).label == ["hidden unit 7"] * 2


def test_pixels_of_a_segmentation() -> None:
    class Segmenter(nn.Module):
        config = transformers.ViTConfig(**PATCHES | {"num_labels": 3}, id2label=NAMES)
        main_input_name = "pixel_values"

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, channels, 3)

        def forward(self, pixel_values: Tensor) -> Any:
            found = self.conv(pixel_values)
            return {"predicted_depth": found[:, 0]} if found.shape[1] == 1 else {"logits": found}

    image = torch.randn(1, 3, 8, 8)
    assert explained(Segmenter(3).eval(), image, target=(2, 4, 5)).label == ["B-LOC at pixel (row 4, column 5)"]
    assert explained(Segmenter(5).eval(), image, target=(2, 4, 5)).label == ["channel 2 at pixel (row 4, column 5)"]
    assert explained(Segmenter(1).eval(), image, target=(4, 5)).label == ["pixel (row 4, column 5)"]


def test_classes_of_boxes() -> None:
    class Detector(nn.Module):
        config = transformers.ViTConfig(**PATCHES | {"num_labels": 3}, id2label=NAMES)
        main_input_name = "pixel_values"

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 8)

        def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
            found = self.net(pixel_values).mean(1)
            return {"logits": found[..., :4], "pred_boxes": found[..., 4:]}

    found = explained(Detector().eval(), torch.randn(1, 3, 8, 8), target=(6, 2))
    assert found.label == ["B-LOC of box 6"]
    assert explained(Detector().eval(), torch.randn(1, 3, 8, 8), target=(6, 3)).label == ["class 3 of box 6"]


def test_a_module_that_says_nothing_of_itself_has_classes() -> None:
    x = torch.randn(2, 5, 4)
    net = nn.Linear(4, 3).eval()
    assert explained(net, x, target=(2, 1)).label == ["class 1 at position 2"] * 2
    assert explained(nn.Sequential(nn.Flatten(), nn.Linear(20, 3)).eval(), x, target=1).label == ["class 1"] * 2


def test_names_of_another_number_of_classes_are_not_its_names() -> None:
    class Wider(nn.Module):
        config = transformers.BertConfig(**WORDS, id2label=NAMES)

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    assert explained(Wider().eval(), torch.randn(1, 4), target=1).label == ["class 1"]


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(fxlrp.TargetError, match=r"has no scores 'end_logit'.*Did you mean 'end_logits'"):
        explained(bert("QuestionAnswering"), {"input_ids": IDS}, target=("end_logit", 1))
