"""A bidirectional LSTM for sentiment: in go ids of words, out come the scores of the classes.

It has the form of Arras et al. 2017, Explaining Recurrent Neural Network Predictions in Sentiment Analysis, section 3.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fxlrp.results.files import write_whole

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class LSTMConfig(BaseModel):
    """Sizes and labels of a :class:`SentimentLSTM`; ``dropout`` applies in training, to embeddings and last states."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: int
    embedding: int = 60
    hidden: int = 60
    dropout: float = 0.5
    id2label: dict[int, str] = {0: "negative", 1: "positive"}


class SentimentLSTM(nn.Module):
    """Word embeddings e_t, one LSTM in each direction, y = W [h_T (forward); h_1 (backward)]: no bias at the output."""

    #: With it come transformers' meanings of names: attention_mask is 1 at words.
    main_input_name = "input_ids"

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.words, config.embedding, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(config.embedding, config.hidden, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * config.hidden, len(config.id2label), bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores [batch, classes] of ids [batch, words].

        With a mask [batch, words], 1 at words and 0 at padding on either side, a sentence has the score that it has
        alone. Without one every position counts as a word.
        """
        x = self.dropout(self.embedding(input_ids))
        if attention_mask is None:
            _, (last, _) = self.lstm(x)
        else:
            words_first = attention_mask.argsort(dim=1, descending=True, stable=True)
            x = x.gather(1, words_first.unsqueeze(-1).expand_as(x))
            lengths = attention_mask.sum(1).cpu()
            _, (last, _) = self.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        scores: Tensor = self.classifier(self.dropout(torch.cat([last[0], last[1]], -1)))
        return scores

    def save(self, folder: Path) -> None:
        """Write sizes and labels, and the weights in float16, into ``folder``."""
        write_whole(folder / CONFIG, self.config.model_dump_json(indent=2) + "\n")
        halves = {name: weight.half() for name, weight in self.state_dict().items()}
        write_whole(folder / WEIGHTS, save(halves, metadata={"format": "pt"}))

    @staticmethod
    def load(folder: Path) -> SentimentLSTM:
        """What :meth:`save` wrote, in float32 and evaluation mode."""
        config = LSTMConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
        model = SentimentLSTM(config)
        model.load_state_dict({name: weight.float() for name, weight in load_file(folder / WEIGHTS).items()})
        return model.eval()
