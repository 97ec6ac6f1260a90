"""Train the small vision transformer of `fxlrp.shipped.digits_vit`, whose images come with the pixels that matter.

In: scikit-learn's handwritten digits, pasted on cluttered canvases by `fxlrp.shipped.digits`.
Out: a Hugging Face folder with the model in float16 and a model card that states the accuracy measured on the files
just written, on canvases with digits that training never saw.

    python examples/train_digits.py --out DIR        # by default writes fxlrp/shipped/digits_vit/
"""

from pathlib import Path
from string import Template
from typing import Annotated

import torch
import transformers
import typer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import ViTConfig, ViTForImageClassification

from fxlrp.shipped import Digits, digits

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCH = 20_480  # canvases, freshly drawn every time
BATCH = 64
MEASURED = 5_000  # canvases that the card's accuracy is measured on
TEST_SEED = 2**31  # no epoch's seed


def new_model() -> ViTForImageClassification:
    """Return an untrained vision transformer of about 0.14 million parameters: 64 patches of 4 x 4 pixels."""
    config = ViTConfig(
        image_size=32,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.05,  # ViT's own 0.02 suits 768 features
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
        architectures=["ViTForImageClassification"],
        dtype="float32",
    )
    return ViTForImageClassification(config)


@torch.no_grad()
def accuracy(model: nn.Module, canvases: Digits) -> float:
    """Return the share of canvases whose largest logit is that of their digit."""
    model.eval()
    logits = torch.cat([model(images).logits for images in canvases.images.split(250)])
    return (logits.argmax(-1) == canvases.labels).float().mean().item()


def train(epochs: int, seed: int) -> ViTForImageClassification:
    """Return the moving average of the weights after the last epoch; nothing is chosen by test accuracy."""
    model = new_model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    steps = epochs * (EPOCH // BATCH)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    shown = digits(1000, TEST_SEED, "test")
    for epoch in range(epochs):
        canvases = digits(EPOCH, seed * epochs + epoch, "train")
        model.train()
        for images, labels in zip(canvases.images.split(BATCH), canvases.labels.split(BATCH), strict=True):
            loss = F.cross_entropy(model(images).logits, labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
        score = accuracy(averaged, shown)
        typer.echo(f"epoch {epoch + 1} of {epochs}: last loss {loss.item():.3f}, test accuracy {score:.2%}")
    model.load_state_dict(averaged.module.state_dict())
    return model


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = REPOSITORY / "fxlrp/shipped/digits_vit",
    epochs: Annotated[int, typer.Option(help=f"How often {EPOCH:,} canvases are drawn.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
) -> None:
    """Train on cluttered digits and write the model and its card."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # one order of summation, whatever the machine's number of cores
    transformers.utils.logging.disable_progress_bar()
    model = train(epochs, seed)

    out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(out)  # it says float32: the float16 file is read back as float32
    halves = {name: weight.half() for name, weight in model.state_dict().items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})

    # What the card reports is what a user gets: everything is read back from the folder.
    saved = ViTForImageClassification.from_pretrained(out, dtype=torch.float32)
    canvases = digits(MEASURED, TEST_SEED + 1, "test")
    unrounded, score = accuracy(model, canvases), accuracy(saved, canvases)
    card = Template((Path(__file__).parent / "digits_vit_card.md").read_text(encoding="utf-8")).substitute(
        accuracy=f"{score:.2%}",
        unrounded=f"{unrounded:.2%}",
        trained=f"{accuracy(saved, digits(MEASURED, TEST_SEED + 2, 'train')):.2%}",
        measured=f"{MEASURED:,}",
        parameters=f"{saved.num_parameters():,}",
        canvases=f"{epochs * EPOCH:,}",
        masked=f"{canvases.masks.float().mean().item():.1%}",
        epochs=epochs,
        seed=seed,
    )
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    typer.echo(f"read back from {out.name}: test accuracy {score:.2%}, before rounding {unrounded:.2%}")


if __name__ == "__main__":
    typer.run(main)
