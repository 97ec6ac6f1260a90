"""Train the small sentiment classifier that `fxlrp demo` explains.

In: the SST-2 folder with `train.tsv` and `dev.tsv` (tab separated, header `sentence<TAB>label`).
Out: a Hugging Face folder with a two-layer BERT in float16, its WordPiece tokenizer and a model card
that states the accuracy measured on the files just written.

    python examples/train_sst2.py --data DIR --out DIR        # by default writes fxlrp/shipped/sst2_bert/
"""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Annotated

import torch
import transformers
import typer
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

REPOSITORY = Path(__file__).resolve().parents[1]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # a token's place is its id
PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = 8000
MAX_LENGTH = 128  # tokens of an input, [CLS] and [SEP] included
BATCH = 64
DROPOUT = 0.3
WORD_DROPOUT = 0.15


def read_tsv(path: Path) -> tuple[list[str], list[int]]:
    """Return the sentences and the labels (0 negative, 1 positive) of one SST-2 file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"].strip() for row in rows], [int(row["label"]) for row in rows]


def spelling() -> Normalizer:
    """Return what brings ordinary writing and the Penn Treebank's, in which SST-2 is written, to one spelling."""
    spellings = {"’": "'", "-lrb-": "(", "-rrb-": ")", "``": '"', "''": '"'}
    replace = [normalizers.Replace(old, new) for old, new in spellings.items()]
    return normalizers.Sequence([normalizers.BertNormalizer(lowercase=True), *replace])


def splitter() -> PreTokenizer:
    """Return what splits a normalised text at spaces, around signs, and before "n't" and "'s", which stay whole."""
    words = Regex(r"\w+?(?=n't\b)|n't\b|'(?:s|d|m|ll|re|ve)\b|\w+|[^\w\s]")
    split = pre_tokenizers.Split(words, behavior="isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])


def train_tokenizer(sentences: list[str]) -> PreTrainedTokenizerFast:
    """Train a lower-cased WordPiece vocabulary.

    SST-2 is written in the style of the Penn Treebank ("is n't", "-lrb-", "``"). Normaliser and splitter
    bring ordinary writing ("isn't", "(", a quotation mark) to the same tokens and keep "n't" and "'s" whole.
    """
    normalizer = spelling()

    def assemble(vocabulary: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = splitter()
        return tokenizer

    # The trainer numbers the inner letters in random order and breaks ties by number. Named first, they keep
    # their place, and the vocabulary is the same in every run.
    letters = sorted({f"##{c}" for c in normalizer.normalize_str(" ".join(sentences)) if c != " "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=[*SPECIAL_TOKENS, *letters], show_progress=False
    )
    draft = assemble({})
    draft.train_from_iterator(sentences, trainer)
    tokenizer = assemble(draft.get_vocab())  # the letters are ordinary pieces again
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}  # pad_token, unk_token ...
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **names)


def new_model() -> BertForSequenceClassification:
    """Return an untrained two-layer BERT of about 1.5 million parameters."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        initializer_range=0.08,  # about 1 / sqrt(hidden size); BERT's own 0.02 suits 768
        pad_token_id=PAD,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
        architectures=["BertForSequenceClassification"],
        dtype="float32",
    )
    model = BertForSequenceClassification(config)
    # Start close to a bag of words. It also leaves the positions that no training sentence reaches harmless.
    model.bert.embeddings.position_embeddings.weight.data *= 0.1
    return model


def batches(
    ids: list[list[int]], labels: list[int], rng: random.Random | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ids, mask [batch, tokens] and labels [batch] of sentences alike in length, shuffled by `rng`."""
    lengths = [len(row) + (rng.uniform(0.0, 2.0) if rng else 0.0) for row in ids]  # batches vary by epoch
    order = sorted(range(len(ids)), key=lengths.__getitem__)
    groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    if rng:
        rng.shuffle(groups)
    for group in groups:
        padded = pad_sequence([torch.tensor(ids[i]) for i in group], batch_first=True, padding_value=PAD)
        yield padded, (padded != PAD).long(), torch.tensor([labels[i] for i in group])


def drop_words(ids: Tensor, ordinary: int = len(SPECIAL_TOKENS)) -> Tensor:
    """Replace tokens from ``ordinary`` on by [UNK] with probability WORD_DROPOUT.   ids: [batch, tokens]."""
    dropped = (torch.rand(ids.shape) < WORD_DROPOUT) & (ids >= ordinary)
    return ids.masked_fill(dropped, UNK)


@torch.no_grad()
def accuracy(model: nn.Module, ids: list[list[int]], labels: list[int]) -> float:
    """Return the share of sentences whose larger logit is that of their label."""
    model.eval()
    hits = [model(input_ids=x, attention_mask=mask).logits.argmax(-1) == y for x, mask, y in batches(ids, labels)]
    return torch.cat(hits).float().mean().item()


def train(
    ids: list[list[int]], labels: list[int], dev: tuple[list[list[int]], list[int]], epochs: int, seed: int
) -> BertForSequenceClassification:
    """Return the moving average of the weights at the epoch that is best on dev."""
    rng = random.Random(seed)
    model = new_model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.05)
    steps = epochs * -(-len(ids) // BATCH)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    best, weights = 0.0, model.state_dict()
    for epoch in range(1, epochs + 1):
        model.train()
        for tokens, mask, gold in batches(ids, labels, rng):
            logits = model(input_ids=drop_words(tokens), attention_mask=mask).logits
            loss = F.cross_entropy(logits, gold, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
        score = accuracy(averaged, *dev)
        typer.echo(f"epoch {epoch} of {epochs}: dev accuracy {score:.2%}")
        if score > best:
            best, weights = score, {k: v.clone() for k, v in averaged.module.state_dict().items()}
    model.load_state_dict(weights)
    return model


def main(
    data: Annotated[Path, typer.Option(help="Folder with train.tsv and dev.tsv.")] = REPOSITORY / "../shared/data/sst2",
    out: Annotated[Path, typer.Option(help="Folder to write.")] = REPOSITORY / "fxlrp/shipped/sst2_bert",
    epochs: Annotated[int, typer.Option(help="Passes over the training phrases.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
) -> None:
    """Train on SST-2 and write the model, its tokenizer and its card."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # one order of summation, whatever the machine's number of cores
    transformers.utils.logging.disable_progress_bar()
    sentences, labels = read_tsv(data / "train.tsv")
    dev_sentences, dev_labels = read_tsv(data / "dev.tsv")
    tokenizer = train_tokenizer(sentences)
    ids: list[list[int]] = tokenizer(sentences, truncation=True)["input_ids"]
    dev_ids: list[list[int]] = tokenizer(dev_sentences, truncation=True)["input_ids"]
    model = train(ids, labels, (dev_ids, dev_labels), epochs, seed)

    out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(out)  # it says float32: the float16 file is read back as float32
    halves = {name: weight.half() for name, weight in model.state_dict().items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)

    # What the card reports is what a user gets: everything is read back from the folder.
    saved = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    reread = AutoTokenizer.from_pretrained(out)(dev_sentences, truncation=True)["input_ids"]
    score = accuracy(saved, reread, dev_labels)
    card = Template((Path(__file__).parent / "demo_model_card.md").read_text(encoding="utf-8")).substitute(
        accuracy=f"{score:.2%}",
        correct=f"{round(score * len(dev_labels))} of {len(dev_labels)}",
        parameters=f"{saved.num_parameters():,}",
        epochs=epochs,
        seed=seed,
    )
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    typer.echo(f"read back from {out.name}: dev accuracy {score:.2%}")


if __name__ == "__main__":
    typer.run(main)
