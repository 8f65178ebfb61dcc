"""A tokenizer of one's own: trained on the training split, as GPT-2's or as BERT's."""

from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_sft.block import Block
from hf_sft.storage.cache import cache_folder, digest, made_once

END = "<|endoftext|>"
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
LETTERS = 1000
"""Of wordpiece, the most frequent ones; others are unknown."""
LEAST = {"bpe": 257, "wordpiece": 100}
"""Tokens: of bpe all bytes and the end of a text; of wordpiece the special ones and room for letters."""


class NewTokenizer(Block):
    """A tokenizer to be trained on the training split."""

    type: Literal["bpe", "wordpiece"]
    """bpe on bytes, as GPT-2 has it, where nothing is unknown; or wordpiece in lower case, as BERT has it."""
    vocab_size: int = Field(default=8192)
    """Tokens, the special ones included."""

    @model_validator(mode="after")
    def _room_for_special_tokens(self) -> "NewTokenizer":
        least = LEAST[self.type]
        if self.vocab_size < least:
            values = {"least": least, "type": self.type, "given": self.vocab_size}
            raise PydanticCustomError("vocab_size", "`vocab_size` must be at least {least} for {type}; got {given}", values)
        return self


def trained_tokenizer(wanted: NewTokenizer, texts: Callable[[], Iterable[str]], key: str) -> Path:
    """The folder of a tokenizer trained on `texts`, which `key` stands for: from the cache, or made now by one process."""
    folder = cache_folder("tokenizers") / digest(wanted.model_dump_json(), key, version("tokenizers"))
    return made_once(folder, lambda aside: train_tokenizer(wanted, texts()).save_pretrained(aside))


def train_tokenizer(wanted: NewTokenizer, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """By the `tokenizers` library; the same texts give the same tokenizer."""
    if wanted.type == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=wanted.vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        # A document begins with the end of the one before: so the model is trained, and so whoever loads it should ask.
        start = [(END, tokenizer.token_to_id(END))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=start)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    tokenizer = _bert_like(models.WordPiece(unk_token=BERT["unk_token"]))
    texts = list(texts)
    # The trainer numbers letters inside words as it happens to meet them, and breaks ties by number: they are numbered here.
    letters = Counter("".join(tokenizer.normalizer.normalize_str(text) for text in texts))
    ranked = sorted((each for each in letters if not each.isspace()), key=lambda each: (-letters[each], each))
    ranked = ranked[: min(LETTERS, (wanted.vocab_size - len(BERT)) // 4)]
    first = [*BERT.values(), *ranked, *(f"##{each}" for each in ranked)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=wanted.vocab_size, special_tokens=first, limit_alphabet=len(ranked), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    tokenizer = _bert_like(models.WordPiece(vocabulary, unk_token=BERT["unk_token"]))  # where letters are not special
    ids = [(name, vocabulary[name]) for name in (BERT["cls_token"], BERT["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **BERT)


def _bert_like(model: Any) -> Any:
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
