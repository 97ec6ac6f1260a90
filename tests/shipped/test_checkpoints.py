"""Loading checkpoints, reading targets, encoding texts: what works, and what a wrong request is told."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxlrp.engine.conventions import block_names
from fxlrp.errors import InputError, TargetError
from fxlrp.shipped.checkpoints import CheckpointError, class_index, encode, load_checkpoint


@pytest.fixture
def copy(classifier: Path, tmp_path: Path) -> Path:
    """The classifier, to be damaged."""
    return Path(shutil.copytree(classifier, tmp_path / "copy"))


def test_a_classifier_and_a_language_model_load(classifier: Path, language_model: Path) -> None:
    for folder, name in ((classifier, "BertForSequenceClassification"), (language_model, "GPT2LMHeadModel")):
        model, tokenizer = load_checkpoint(folder)
        assert type(model).__name__ == name
        assert not model.training
        assert model.dtype == torch.float32
        assert tokenizer.tokenize("a good film")


def test_half_precision_weights_are_loaded_in_float32(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    halves = {name: weight.half() for name, weight in weights.items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_checkpoint(copy)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("source", ["./no/such/folder", "/no/such", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder_is_not_taken_for_a_hub_name(source: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_checkpoint(source)


def test_a_file_is_no_folder(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_checkpoint(copy / "config.json")


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_folder_without_tokenizer_is_refused(
    kept: tuple[str, ...], classifier: Path, language_model: Path, tmp_path: Path
) -> None:
    """transformers makes a tokenizer of special tokens alone where files are missing: every word was [UNK]."""
    for number, whole in enumerate((classifier, language_model)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("config.json", "model.safetensors", *kept):
            shutil.copy(whole / name, folder / name)
        with pytest.raises(CheckpointError, match=r"has no tokenizer|cannot load"):
            load_checkpoint(folder)


def test_a_text_that_the_tokenizer_does_not_know_is_told(classifier: Path) -> None:
    model, tokenizer = load_checkpoint(classifier)
    with pytest.warns(UserWarning, match=r"knows nothing of '\u2603 \u2604': all of it is '\[UNK\]'"):
        encode(["a good film", "\u2603 \u2604"], tokenizer, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(["a good film", "a \u2603"], tokenizer, model)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], None])
def test_another_architecture_is_named(copy: Path, architectures: list[str] | None) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    with pytest.raises(CheckpointError, match="BertForMaskedLM" if architectures else "none"):
        load_checkpoint(copy)


def test_a_head_without_weights_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights.*classifier\.weight"):
        load_checkpoint(copy)


def test_targets_of_a_classifier(classifier: Path) -> None:
    model, tokenizer = load_checkpoint(classifier)
    assert class_index("positive", model, tokenizer) == class_index("Positive", model, tokenizer) == 1
    assert class_index("0", model, tokenizer) == 0
    with pytest.raises(TargetError, match="Did you mean 'positive'"):
        class_index("positiv", model, tokenizer)


def test_targets_of_a_language_model(language_model: Path) -> None:
    model, tokenizer = load_checkpoint(language_model)
    (expected,) = tokenizer.convert_tokens_to_ids(["Ġfilm"])
    assert class_index(" film", model, tokenizer) == expected
    assert class_index("7", model, tokenizer) == 7
    with pytest.raises(TargetError, match="a target is one token"):
        class_index("unforgettable film", model, tokenizer)


def test_texts_are_padded_even_without_a_padding_token(language_model: Path) -> None:
    model, tokenizer = load_checkpoint(language_model)
    encoded = encode(["a good film", "a"], tokenizer, model)
    assert encoded["attention_mask"].sum(1).tolist() == [len(tokenizer.tokenize("a good film")), 1]


def test_a_text_without_tokens_or_with_too_many(language_model: Path) -> None:
    model, tokenizer = load_checkpoint(language_model)
    with pytest.raises(InputError, match="no token"):
        encode([""], tokenizer, model)
    with pytest.raises(InputError, match="at most 32"):
        encode(["film " * 40], tokenizer, model)


def test_blocks_are_found(classifier: Path, language_model: Path) -> None:
    assert block_names(load_checkpoint(classifier)[0]) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert block_names(load_checkpoint(language_model)[0]) == ["transformer.h.0", "transformer.h.1"]
    assert block_names(torch.nn.Linear(1, 1)) == []
