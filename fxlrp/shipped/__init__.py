"""Small trained models that come with fxlrp, and images with known truth: all of it runs offline.

No argument goes in but a count and a seed; out come models in float32 and evaluation mode, with their tokenizers.
How each was trained, what it can do and what it cannot is in the MODEL_CARD.md of its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fxlrp.shipped.bilstm import SentimentLSTM
from fxlrp.shipped.canvases import Digits, digits
from fxlrp.shipped.checkpoints import CheckpointError, load_demo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Digits", "digits", "digits_vit", "sentiment_bert", "sentiment_bilstm"]


def digits_vit() -> PreTrainedModel:
    """Return a vision transformer that names the digit on the canvases of :func:`digits`.

    It takes ``pixel_values`` [batch, 1, 32, 32] between 0 and 1, as 64 patches of 4 x 4 pixels.

    Raises:
        CheckpointError: the installation lacks the model's files.
    """
    import torch
    from transformers import ViTForImageClassification

    folder = _folder("digits_vit", "train_digits.py")
    model: PreTrainedModel = ViTForImageClassification.from_pretrained(
        str(folder), local_files_only=True, dtype=torch.float32
    )
    return model.eval()


def sentiment_bert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the two-layer BERT that tells negative from positive film reviews (SST-2) and its tokenizer.

    It is the model of ``fxlrp demo``.

    Raises:
        CheckpointError: the installation lacks the model's files.
    """
    return load_demo()


def sentiment_bilstm() -> tuple[SentimentLSTM, PreTrainedTokenizerBase]:
    """Return a bidirectional LSTM of whole words for the same task and its tokenizer.

    Its form is that of Arras et al. 2017. It takes ``input_ids`` and ``attention_mask`` [batch, words] as the
    tokenizer gives them.

    Raises:
        CheckpointError: the installation lacks the model's files.
    """
    from transformers import AutoTokenizer

    from fxlrp.shipped.bilstm import SentimentLSTM

    folder = _folder("sst2_bilstm", "train_bilstm.py")
    return SentimentLSTM.load(folder), AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _folder(name: str, script: str) -> Path:
    folder = Path(__file__).parent / name
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The model '{name}' is missing from this installation ({folder}). "
            f"Reinstall fxlrp, or write it anew with: python examples/{script}"
        )
    return folder
