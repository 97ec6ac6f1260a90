"""Checkpoints for the command line: in goes a folder or a name, out come a model in evaluation mode and its
tokenizer.

Sequence classifiers, causal and encoder-decoder language models are told apart by the architecture that the
checkpoint's own config names. A local folder never touches the network; a name is looked up as transformers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxlrp.errors import FxlrpError, InputError, TargetError, nearest, shortened, visible, warn

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEMO_MODEL = Path(__file__).parent / "sst2_bert"
CLASSIFIER_SUFFIXES = ("ForSequenceClassification",)
LANGUAGE_MODEL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
ENCODER_DECODER_SUFFIXES = ("ForConditionalGeneration",)


class CheckpointError(FxlrpError):
    """A checkpoint cannot be found, or holds no model whose output can be explained here."""


def load_demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the sentiment classifier that is shipped with fxlrp, in float32, and its tokenizer.

    Raises:
        CheckpointError: the installation lacks the model's files.
    """
    if not (DEMO_MODEL / "config.json").is_file():
        raise CheckpointError(
            f"The demo model is missing from this installation ({DEMO_MODEL}). "
            "Reinstall fxlrp, or write it anew with: python examples/train_sst2.py"
        )
    return load_checkpoint(DEMO_MODEL)


def load_checkpoint(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, in float32 and evaluation mode, and the tokenizer of a checkpoint.

    Args: source: a folder written by ``save_pretrained``, or the name of a checkpoint on the Hugging Face hub
    (taken from the local cache if it is there, else downloaded).

    Raises: CheckpointError: there is no such checkpoint, it is no sequence classifier or language model, parts
    of its weights are missing, or it has no tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(source).expanduser()
    local = folder.is_dir()
    if not local and (folder.exists() or _looks_like_path(str(source))):
        raise CheckpointError(f"'{source}' is not a folder. Give a folder that holds config.json, or a hub name.")
    name = str(folder) if local else str(source)
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        model_class = _model_class(config, name)
        loaded: Any = model_class.from_pretrained(  # typed as a model, but output_loading_info makes it a pair
            name, config=config, local_files_only=local, dtype=torch.float32, output_loading_info=True
        )
        model, loading = loaded
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load '{source}': {error}") from error
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:5])
        raise CheckpointError(
            f"'{source}' lacks weights that its architecture needs ({missing}); they would be random, and "
            "so would the explanation. Fine-tune the model first, or choose a checkpoint that was."
        )
    if (
        len(tokenizer) - len(tokenizer.all_special_tokens) < 2
    ):  # transformers makes an empty one where files are missing
        raise CheckpointError(
            f"'{source}' has no tokenizer: there is no vocabulary beside special tokens, and every text would be "
            "unknown. Save the tokenizer with the model: tokenizer.save_pretrained(folder)."
        )
    network: PreTrainedModel = model.eval()
    return network, tokenizer


def _looks_like_path(source: str) -> bool:
    """Hub names are ``name`` or ``owner/name``; whatever else has separators or dots in front was meant as a
    path.
    """
    return source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1 or source.endswith("/")


def _model_class(config: PreTrainedConfig, source: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    architectures: Sequence[str] = config.architectures or ()
    known: list[tuple[tuple[str, ...], Any]] = [
        (CLASSIFIER_SUFFIXES, AutoModelForSequenceClassification),
        (LANGUAGE_MODEL_SUFFIXES, AutoModelForCausalLM),
    ]
    if config.is_encoder_decoder:
        known.append((ENCODER_DECODER_SUFFIXES, AutoModelForSeq2SeqLM))
    for suffixes, model_class in known:
        if any(name.endswith(suffixes) for name in architectures):
            return model_class
    found = ", ".join(architectures) or "none"
    raise CheckpointError(
        f"'{source}' holds neither a sequence classifier nor a causal language model, nor an encoder-decoder that "
        f"generates text (architectures in its config.json: {found}). Other models are explained from Python: "
        "fxlrp.convert(model, ruleset)."
    )


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, room: int = 0
) -> BatchEncoding:
    """Return ``texts`` as the model takes them: ids and mask ``[batch, tokens]``, padded to the longest.

    ``room`` is the number of tokens that a language model is to generate: a prompt that they are appended to is
    padded on the left.

    Raises:
        InputError: a text has no token, or more of them (with those to append) than the model has positions.

    A text of which the tokenizer knows nothing is warned of.
    """
    if model.config.is_encoder_decoder:
        if not room:
            raise InputError("An encoder-decoder is explained by what it generates: fxlrp explain --generate 20.")
        room = 0  # the decoder's, whose length is its own
    if tokenizer.pad_token is None:  # as in GPT-2; the mask keeps padding out, whatever token it is made of
        tokenizer.pad_token = tokenizer.eos_token
    encoded: BatchEncoding = tokenizer(
        list(texts), return_tensors="pt", padding=len(texts) > 1, **({"padding_side": "left"} if room else {})
    )
    length = encoded["input_ids"].shape[1]
    if length == 0:
        raise InputError("The text has no token. Give at least one word.")
    _warn_of_unknown(texts, encoded, tokenizer)
    positions = min(getattr(model.config, "max_position_embeddings", length), tokenizer.model_max_length)
    if length + room > positions:
        more = f" and {room} are to be generated" if room else ""
        raise InputError(f"The text has {length} tokens{more}, the model takes at most {positions}. Shorten it.")
    return encoded


def _warn_of_unknown(texts: Sequence[str], encoded: BatchEncoding, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of texts that hold nothing but unknown tokens."""
    unknown = tokenizer.unk_token_id
    others = {*tokenizer.all_special_ids} - {unknown}
    for text, ids in zip(texts, encoded["input_ids"].tolist(), strict=True):
        if unknown is not None and {*ids} - others == {unknown}:
            warn(
                f"The tokenizer knows nothing of '{shortened(visible(text))}': all of it is '{tokenizer.unk_token}', "
                "and so is what is explained."
            )


def class_index(wanted: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the output index that ``wanted`` names: a number, a class label, or one token of a language
    model.

    Raises:
        TargetError: there is no such label, or the text is not exactly one token.
    """
    if wanted.lstrip("-").isdecimal():
        return int(wanted)
    if type(model).__name__.endswith(CLASSIFIER_SUFFIXES):
        labels = {label.lower(): index for label, index in (model.config.label2id or {}).items()}
        if wanted.lower() not in labels:
            raise TargetError(f"The model has no class '{wanted}'.{nearest(wanted.lower(), labels)}")
        return int(labels[wanted.lower()])
    ids = tokenizer.encode(wanted, add_special_tokens=False)
    if len(ids) != 1:
        pieces = " ".join(f"'{piece}'" for piece in tokenizer.convert_ids_to_tokens(ids))
        raise TargetError(
            f"'{wanted}' is {len(ids)} tokens to this model ({pieces}); a target is one token. "
            "A leading space often matters: try ' " + wanted.strip() + "'."
        )
    return int(ids[0])
