"""Checkpoints of two layers and recipes of a few rows, built from nothing."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    ConvNextImageProcessor,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

import hf_sft.models.reload_check
import hf_sft.reports.plots

SIDE = 48
"""Of the pictures that tiny models take."""
WORDS = [
    "a",
    "the",
    "goal",
    "match",
    "was",
    "lost",
    "in",
    "last",
    "minute",
    "shares",
    "fell",
    "again",
    "bank",
    "cut",
    "its",
    "rates",
    "court",
    "ruled",
    "on",
    "film",
    "opened",
    "to",
    "good",
    "bad",
    "reviews",
    "players",
    "coach",
    "market",
    "price",
    "rose",
    "sharply",
    "law",
    "passed",
    "vote",
    "actor",
    "song",
]


def _bert_tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "[MASK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)


def _gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Like GPT-2's: no pad token, no special tokens added, and (worse than GPT-2's) padding on the left."""
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def _bert() -> Any:
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=64, max_position_embeddings=64, **size, **drop))


def _gpt2() -> Any:
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "classifier_dropout": 0.0}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, **drop, **ids))


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "bert": (_bert, _bert_tokenizer),
    "gpt2": (_gpt2, _gpt2_tokenizer),
}


def _resnet() -> Any:
    size = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetModel(ResNetConfig(**size))
    for module in model.modules():  # statistics as those of a trained one: neither 0 nor 1
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def _vit() -> Any:
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTModel(ViTConfig(image_size=SIDE, patch_size=16, **size, **drop), add_pooling_layer=False)


IMAGE_FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "resnet": (_resnet, lambda: ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=1.0)),
    "vit": (_vit, lambda: ViTImageProcessor(size={"height": SIDE, "width": SIDE})),
}


def _llama() -> Any:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaModel(LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=64, **size))


CAUSAL_FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {"llama": (_llama, _gpt2_tokenizer)}
"""The one with an output layer of its own; GPT-2's is tied to its embeddings."""


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    """A text ends with </s>, the second token; the first pads, and is what the decoder begins with."""
    return _ended_tokenizer("$A </s>", ["<pad>", "</s>", "<unk>"])


def _bart_tokenizer() -> PreTrainedTokenizerFast:
    return _ended_tokenizer("<s> $A </s>", ["<s>", "<pad>", "</s>", "<unk>"])


def _ended_tokenizer(form: str, special: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(token, vocabulary[token]) for token in special if token in form.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=ids)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    if "<s>" in special:
        names |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)


def _t5() -> Any:
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5Model(T5Config(vocab_size=64, dropout_rate=0.0, tie_word_embeddings=True, **size, **ids))


def _bart() -> Any:
    size = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART_SIDE.items()}
    drop = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    return BartModel(BartConfig(vocab_size=64, d_model=32, max_position_embeddings=64, **size, **drop, **ids))


BART_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
SEQ2SEQ_FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "t5": (_t5, _t5_tokenizer),
    "bart": (_bart, _bart_tokenizer),
}
ALL_FAMILIES = {**FAMILIES, **IMAGE_FAMILIES, **CAUSAL_FAMILIES, **SEQ2SEQ_FAMILIES}


def train_quickly() -> None:
    """Trainings of this process spare what takes longer than they do.

    That is the new process that loads what was saved; the figures of the page; the disk's word that it holds a file, which no
    test can tell while the machine has power; and Trainer's search for garbage among what the libraries made."""

    def here(write: Callable[[], None], *arguments: Any) -> Callable[[], dict[str, Any]]:
        write()
        return lambda: hf_sft.models.reload_check.compare(*arguments)

    hf_sft.models.reload_check.fresh_process = here
    hf_sft.reports.plots.draw_run = lambda facts, metric: {"scores": "", "phases": [[] for _ in facts["training"]["curves"]]}
    os.fsync = lambda opened: None
    gc.freeze()


def build(family: str, folder: Path) -> Path:
    """A checkpoint without a head, saved as the Hub would have it."""
    make_model, make_processor = ALL_FAMILIES[family]
    torch.manual_seed(0)
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


PROBLEMS = ("single_label_classification", "multi_label_classification", "regression", "entities", "choices", "questions")
"""The kinds of rows that there are, but for pictures."""
CASES = [(family, problem) for family in FAMILIES for problem in PROBLEMS if (family, problem) != ("gpt2", "choices")]
CASES += [(family, "pictures") for family in IMAGE_FAMILIES]
CASES += [(family, "texts") for family in ("gpt2", *CAUSAL_FAMILIES)]
CASES += [("bert", "masked")]
CASES += [(family, "talks") for family in ("gpt2", *CAUSAL_FAMILIES)]
CASES += [(family, "pairs") for family in SEQ2SEQ_FAMILIES]
"""Families and the kinds of rows that they have a head for."""


KNOWN = {"sport": "goal", "business": "bank"}
"""What models that write say for labels that no tokenizer here knows."""


def rows(problem_type: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Texts of 2 to 12 words whose label can be learned from their first word."""
    made = []
    for i in range(start, start + count):
        length = 2 + (7 * i) % 11
        text = " ".join(WORDS[(i * 5 + 3 * j) % len(WORDS)] for j in range(length))
        first = WORDS.index(text.split()[0])
        label: Any = ["sport", "business", "law"][first % 3]
        if problem_type == "multi_label_classification":
            label = [name for k, name in enumerate(("short", "odd", "third")) if (first >> k) % 2]
        if problem_type == "regression":
            label = first / 10
        if problem_type == "entities":
            made.append({"words": text.split(), "tags": _tag(text.split())})
        elif problem_type == "talks":
            said = [text, KNOWN.get(label, label), " ".join(text.split()[::-1]), "good"][: 2 + 2 * (i % 2)]
            turns = [{"role": ("user", "assistant")[place % 2], "content": words} for place, words in enumerate(said)]
            made.append({"messages": turns})
        elif problem_type == "pairs":
            made.append({"source": text, "target": " ".join([*text.split()[: i % 3], KNOWN.get(label, label)])})
        elif problem_type in ("texts", "masked"):
            made.append({"text": " ".join([text] * (1 + i % 3))})
        elif problem_type == "pictures":
            made.append({"image": f"{i}.png", "label": label})
        elif problem_type == "questions":
            words = text.split()
            start = sum(len(word) + 1 for word in words[: i % len(words)])
            known = {"text": [words[i % len(words)]], "answer_start": [start]} if i % 5 else {"text": [], "answer_start": []}
            made.append({"question": f"a {words[0]}", "context": text, "answers": known})
        elif problem_type == "choices":
            right = i % (2 + i % 3)
            endings = [WORDS[(first + place - right) % len(WORDS)] for place in range(2 + i % 3)]
            made.append({"context": text, "choices": endings, "label": right})
        else:
            made.append({"text": text, "label": label})
    return made


def draw_files(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The pictures that rows name."""
    for row in rows:
        if "image" in row:
            draw(int(Path(row["image"]).stem)).save(folder / row["image"])


def draw(i: int) -> Image.Image:
    """A picture of stripes whose colour and width tell the label of row `i`; none is like another."""
    first, size = (i * 5) % len(WORDS), (40 + i % 7, 30 + i % 5)
    colour = [(200, 40, 40), (40, 200, 40), (40, 40, 200)][first % 3]
    picture = Image.new("RGB", size, colour)
    for x in range(0, size[0], 4 + first % 3):
        picture.paste((i % 251, (7 * i) % 256, first), (x, 0, x + 1, size[1]))
    return picture


def _tag(words: list[str]) -> list[str]:
    """Short words that touch are one entity, and each word at an odd place of the vocabulary is one."""
    tags = []
    for word in words:
        short = "I-SHORT" if tags and tags[-1].endswith("SHORT") else "B-SHORT"
        tags.append(short if len(word) < 4 else "B-ODD" if WORDS.index(word) % 2 else "O")
    return tags


def task_of(problem: str) -> dict[str, Any]:
    """The block for rows of a problem; tagging goes through windows that are shorter than its
    rows, and so do some texts."""
    others = {
        "entities": {"type": "token_classification", "max_length": 8},
        "choices": {"type": "multiple_choice"},
        "questions": {"type": "question_answering"},
        "pictures": {"type": "image_classification"},
        "masked": {"type": "masked_lm", "max_length": 16, "whole_words": True},
        "talks": {"type": "chat", "chat_template": "plain", "max_length": 32},
        "pairs": {"type": "seq2seq", "max_target_length": 8},
        "texts": {"type": "causal_lm", "max_length": 16, "stride": 3},
    }
    return others.get(problem, {"type": "sequence_classification"})


def write_rows(folder: Path, problem_type: str, train: int = 17) -> dict[str, str]:
    """jsonl files of train, validation and test, as `data.data_files` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, count, start in (("train", train, 0), ("validation", 9, 100), ("test", 11, 200)):
        path, made = folder / f"{split}.jsonl", rows(problem_type, count, start)
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        draw_files(folder, made)
        files[split] = str(path)
    return files


def recipe(checkpoint: Path, files: dict[str, str], output: Path, method: str = "full", **changes: Any) -> dict[str, Any]:
    """A recipe as YAML would have it: SGD without clipping in float32, so that equal gradients give equal weights."""
    training = {"batch_size": 8, "max_steps": 5, "learning_rate": 0.1, "optim": "sgd", "bf16": False, "warmup_steps": 0}
    kind, _, variant = method.partition(":")
    made = {
        "model": {"checkpoint": str(checkpoint)},
        "data": {"dataset": "json", "data_files": files},
        "task": {"type": "sequence_classification"},
        "method": {"type": kind, **({"merge": False} if variant == "kept" else {})},
        "training": {**training, "lr_scheduler_type": "constant", "eval_strategy": "no", "disable_tqdm": True},
        "output": {"folder": str(output)},
    }
    for block, fields in changes.items():
        made[block] = {**made.get(block, {}), **fields} if isinstance(fields, dict) else fields
    return made
