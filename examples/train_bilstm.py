"""Train the bidirectional LSTM of `fxlrp.shipped.sentiment_bilstm`, in the form of Arras et al. 2017.

In: the SST-2 folder with `train.tsv` and `dev.tsv` (tab separated, header `sentence<TAB>label`).
Out: a folder with the model in float16, its tokenizer of whole words and a model card that states the accuracy
measured on the files just written.

    python examples/train_bilstm.py --data DIR --out DIR        # by default writes fxlrp/shipped/sst2_bilstm/
"""

import random
from pathlib import Path
from string import Template
from typing import Annotated

import torch
import transformers
import typer
from tokenizers import Tokenizer, models, trainers
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_sst2 import BATCH, REPOSITORY, batches, drop_words, read_tsv, spelling, splitter
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fxlrp.shipped.bilstm import LSTMConfig, SentimentLSTM

SPECIAL_TOKENS = ["[PAD]", "[UNK]"]  # as in train_sst2 a token's place is its id, and these are 0 and 1
LEAST = 2  # occurrences in the training phrases that make a word part of the vocabulary
MAX_LENGTH = 512


def train_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Collect the lower-cased words of SST-2, found in ordinary writing as in the Penn Treebank's."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = spelling(), splitter()
    trainer = trainers.WordLevelTrainer(
        vocab_size=10**6, min_frequency=LEAST, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


@torch.no_grad()
def accuracy(model: nn.Module, ids: list[list[int]], labels: list[int]) -> float:
    """Return the share of sentences whose larger score is that of their label."""
    model.eval()
    hits = [model(x, mask).argmax(-1) == y for x, mask, y in batches(ids, labels)]
    return torch.cat(hits).float().mean().item()


def train(
    ids: list[list[int]], labels: list[int], dev: tuple[list[list[int]], list[int]], words: int, epochs: int, seed: int
) -> SentimentLSTM:
    """Return the moving average of the weights after the last epoch; dev accuracy is shown, nothing is chosen by it."""
    rng = random.Random(seed)
    model = SentimentLSTM(LSTMConfig(words=words))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * -(-len(ids) // BATCH)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    for epoch in range(1, epochs + 1):
        model.train()
        for tokens, mask, gold in batches(ids, labels, rng):
            scores = model(drop_words(tokens, len(SPECIAL_TOKENS)), mask)
            loss = F.cross_entropy(scores, gold, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
        typer.echo(f"epoch {epoch} of {epochs}: dev accuracy {accuracy(averaged, *dev):.2%}")
    model.load_state_dict(averaged.module.state_dict())
    return model


def main(
    data: Annotated[Path, typer.Option(help="Folder with train.tsv and dev.tsv.")] = REPOSITORY / "../shared/data/sst2",
    out: Annotated[Path, typer.Option(help="Folder to write.")] = REPOSITORY / "fxlrp/shipped/sst2_bilstm",
    epochs: Annotated[int, typer.Option(help="Passes over the training phrases.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
) -> None:
    """Train on SST-2 and write the model, its tokenizer and its card."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # one order of summation, whatever the machine's number of cores
    sentences, labels = read_tsv(data / "train.tsv")
    dev_sentences, dev_labels = read_tsv(data / "dev.tsv")
    tokenizer = train_tokenizer(sentences)
    ids: list[list[int]] = tokenizer(sentences)["input_ids"]
    dev_ids: list[list[int]] = tokenizer(dev_sentences)["input_ids"]
    model = train(ids, labels, (dev_ids, dev_labels), len(tokenizer), epochs, seed)

    out.mkdir(parents=True, exist_ok=True)
    model.save(out)
    tokenizer.save_pretrained(out)

    # What the card reports is what a user gets: everything is read back from the folder.
    saved = SentimentLSTM.load(out)
    reread = AutoTokenizer.from_pretrained(out)(dev_sentences)["input_ids"]
    score, unrounded = accuracy(saved, reread, dev_labels), accuracy(model, dev_ids, dev_labels)
    unknown = sum(row.count(SPECIAL_TOKENS.index("[UNK]")) for row in reread) / sum(map(len, reread))
    card = Template((Path(__file__).parent / "sst2_bilstm_card.md").read_text(encoding="utf-8")).substitute(
        accuracy=f"{score:.2%}",
        unrounded=f"{unrounded:.2%}",
        correct=f"{round(score * len(dev_labels))} of {len(dev_labels)}",
        parameters=f"{sum(weight.numel() for weight in saved.parameters()):,}",
        words=f"{len(tokenizer):,}",
        unknown=f"{unknown:.1%}",
        epochs=epochs,
        seed=seed,
    )
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    typer.echo(f"read back from {out.name}: dev accuracy {score:.2%}, before rounding {unrounded:.2%}")


if __name__ == "__main__":
    typer.run(main)
