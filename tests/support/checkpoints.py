"""Tiny checkpoints written to disk: a classifier and a language model with tokenizers of their own, random
weights.
"""

from __future__ import annotations

from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fxlrp.testing.weights import realistic

CORPUS = ["a good film , a bad film , an unforgettable night in paris ."] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_classifier(folder: Path) -> Path:
    """A two-block BERT with the classes `negative` and `positive`, WordPiece tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=SPECIAL))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(
        folder
    )
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    realistic(transformers.BertForSequenceClassification(config)).save_pretrained(folder)
    return folder


def write_language_model(folder: Path) -> Path:
    """A two-block GPT-2 with byte-level tokens and no padding token, as GPT-2 has it."""
    words = _write_byte_tokens(folder)
    config = transformers.GPT2Config(vocab_size=words, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    realistic(transformers.GPT2LMHeadModel(config)).save_pretrained(folder)
    return folder


def write_encoder_decoder(folder: Path) -> Path:
    """A T5 of two blocks a side that begins with token 1 and never ends."""
    config = transformers.T5Config(
        vocab_size=_write_byte_tokens(folder),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=1,
        eos_token_id=None,
    )
    realistic(transformers.T5ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def _write_byte_tokens(folder: Path) -> int:
    """Write a byte-level tokenizer; how many tokens it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[end], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end).save_pretrained(
        folder
    )
    return tokenizer.get_vocab_size()
