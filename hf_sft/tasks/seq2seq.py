"""What text becomes of this text?  Summaries, translations, and whatever else a sequence-to-sequence model writes.

The data: a column of sources and one of targets. In training, and to choose the checkpoint, the target's tokens are predicted
one by one, each from those before it. What is measured at the end is what the model writes on its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.answers.texts import WrittenAnswers, as_texts
from hf_sft.errors import CheckpointError, RecipeError
from hf_sft.losses import Batch, Items, RowOutputs, sum_nats
from hf_sft.tasks import Labels, Task
from hf_sft.tasks.common.baselines import Answerer, Fit
from hf_sft.tasks.common.generation import PLAIN, WRITES, GenerationOptions, read_texts, write_texts
from hf_sft.tasks.common.windows import count_most


class Seq2Seq(Task):
    """Write one text from another: summarise, translate, rewrite."""

    auto_model: ClassVar[Any] = AutoModelForSeq2SeqLM
    pipeline_tag: ClassVar[str] = "text2text-generation"
    peft_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    writes: ClassVar[dict[str, None]] = WRITES
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(
        ("summarization", "summarisation", "translation", "text2text", "text2text_generation", "seq2seq_lm"), "seq2seq"
    )

    source: str = "source"
    """The column of what the model is given."""
    target: str = "target"
    """The column of what it shall write."""
    prefix: str = ""
    """Words that the model is given before each source, as T5 was trained with: `"summarize: "`."""
    max_length: int | None = Field(default=None, ge=4)
    """Maximum number of tokens of a source, with its prefix; as many as the checkpoint allows when not given."""
    max_target_length: int = Field(default=128, ge=2)
    """Maximum number of tokens of a target, and of a generated text."""
    num_beams: int = Field(default=1, ge=1)
    """Texts that are weighed against each other while one is written: 4 or so write better, and take as many times longer."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.source == self.target:
            raise PydanticCustomError("target", "must be another column than that of the source")
        return self

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("rouge_l", "chrf", "loss")

    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"source": (self.source,), "target": (self.target,)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.source,)

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        letters = "".join(text for text in splits["train"][self.target][:1000] if isinstance(text, str))
        letters = [letter for letter in letters if letter.isalpha()]
        unseen = sum(not letter.isascii() for letter in letters) / max(1, len(letters))
        if unseen < 0.01:
            return self, None, []
        note = f"{unseen:.0%} of the targets' letters are none of a to z, and ROUGE leaves them out: look at chrf."
        return self, None, [note]

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        for column in (self.source, self.target):
            for row, text in enumerate(rows[column][:] if column in rows.column_names else []):
                if not isinstance(text, str) or not text.strip():
                    what = "is empty" if isinstance(text, str) else f"holds {type(text).__name__}, not text,"
                    problems.setdefault(f"column `{column}` {what}", []).append(row)
        return problems

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        return {}

    def probe(self, model: Any, processor: Any) -> tuple[Self, list[str]]:
        """With what plain `generate` has to know to write as is measured here; a checkpoint's own habits (a least length, no
        words twice) were for its own texts, and are taken out."""
        if getattr(processor, "tgt_lang", None) is not None:
            raise CheckpointError(
                f"{type(model).__name__} writes many languages, and has to be told by a token which one: seq2seq can't.\n"
                "  Take a checkpoint of one pair of languages, or one that is told in words (T5, by `task.prefix`)."
            )
        config, how, notes = model.config, getattr(model, "generation_config", None), []
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = processor.pad_token_id
            notes.append(f"nothing says what the decoder begins with: `{processor.pad_token}` is taken.")
        if how is not None:
            habits = {name: value for name, value in PLAIN.items() if getattr(how, name, None) not in (None, value)}
            limits = {"num_beams": self.num_beams, "max_new_tokens": self.max_target_length, "max_length": None}
            how.update(**PLAIN, **limits, decoder_start_token_id=config.decoder_start_token_id)
            if habits:
                notes.append(f"the checkpoint's own settings for writing are left out: {', '.join(sorted(habits))}.")
        batch = self.collator(processor)([{"input_ids": [0] * 8, "labels": [0] * self.max_target_length}])
        try:
            with torch.no_grad():
                self._logits(model, batch)
        except (IndexError, RuntimeError) as error:
            (reason, *_), most = str(error).strip().splitlines(), self.max_target_length
            raise CheckpointError(
                f"{type(model).__name__} does not write {most} tokens: {reason}\n  Lower `task.max_target_length`."
            ) from None
        return self, notes

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Sources as `input_ids`, targets as `labels`. A source that is cut keeps its last token, which ends it; a target that
        is cut teaches no end."""
        most = count_most(processor, self.max_length)
        plainly = {"return_attention_mask": False, "verbose": False}
        sources = processor([self.prefix + text for text in rows[self.source]], **plainly)["input_ids"]
        examples: dict[str, list] = {
            "input_ids": [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in sources],
            "truncated": [len(ids) > most for ids in sources],
        }
        if self.target in rows:
            end = processor.eos_token_id
            targets = processor(text_target=rows[self.target], **plainly)["input_ids"]
            whole = [ids if ids[-1:] == [end] else [*ids, end] for ids in targets]
            examples["labels"] = [ids[: self.max_target_length] for ids in whole]
            examples["shortened"] = [len(ids) > self.max_target_length for ids in whole]
            examples["items"] = [len(ids) for ids in examples["labels"]]
            pairs = zip(examples["input_ids"], examples["labels"], strict=True)
            examples["cost"] = [len(source) + len(target) for source, target in pairs]
        return examples

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[str]:
        return rows[self.target][:]

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        pad = processor.pad_token_id or 0

        def padded(rows: list[list[int]], filler: int) -> Tensor:
            tensors = [torch.tensor(row or [filler]) for row in rows]
            return pad_sequence(tensors, batch_first=True, padding_value=filler)

        def collate(examples: list[dict[str, Any]]) -> Batch:
            """Padded on the right; `predicts` is True where a target's token is predicted."""
            sources, targets = ([each.get(name, []) for each in examples] for name in ("input_ids", "labels"))
            return {
                "input_ids": padded(sources, pad),
                "attention_mask": padded([[1] * len(source) for source in sources], 0),
                "labels": padded(targets, pad),
                "predicts": padded([[1] * len(target) for target in targets], 0).bool(),
            }

        return collate

    def model_inputs(self, batch: Batch, processor: Any) -> Batch:
        """The source, with any tokens as decoder inputs."""
        named = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return {**named, "decoder_input_ids": batch["input_ids"][:, : self.max_target_length]}

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Every token of a target, and the one that ends it."""
        return Items(self._logits(model, batch), batch["labels"][batch["predicts"]])

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        """Only items that carry loss; padding is not among them, so the decoder needs no mask."""
        start = getattr(model, "module", model).config.decoder_start_token_id
        shifted = functional.pad(batch["labels"][:, :-1], (1, 0), value=start)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
        return logits[batch["predicts"]].float()

    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Of each example the nats of its target's tokens together, and how many they are, float32, shape (2,)."""
        return sum_nats(self.items(model, batch), batch["predicts"].sum(1))

    def answer_kind(self) -> AnswerKind:
        return WrittenAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        sums = np.array([parts[0] for parts in outputs], dtype=np.float64).reshape(-1, 2)
        return WrittenAnswers(
            sums[:, 0], sums[:, 1], as_texts([str(parts[1]) if len(parts) > 1 else None for parts in outputs])
        )

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        """The first words of the source, as many as the middle one of train's targets has."""

        def lead() -> Answerer:
            count = int(np.median([len(text.split()) for text in train[self.target][:]]))

            def answer(rows: Dataset) -> Answers:
                texts = [" ".join(text.split()[:count]) for text in rows[self.source][:]]
                return WrittenAnswers(np.zeros(len(texts)), np.zeros(len(texts)), as_texts(texts))

            return answer

        return {"lead": lead}

    def complete(
        self, model: Any, rows: Dataset, processor: Any, how: GenerationOptions, budget: int
    ) -> Iterator[dict[str, Any]]:
        """What is written of each source; by beams, where no token is drawn."""
        how = replace(how.at_most(self.max_target_length), num_beams=1 if how.temperature else self.num_beams)
        room = getattr(model.config, "max_position_embeddings", None)
        if room is not None and (how.max_new_tokens or 0) >= room:
            raise RecipeError(f"{how.max_new_tokens} new tokens are more than the model writes: {room - 1}.")
        sources = self.encode({self.source: rows[self.source][:]}, processor, None)["input_ids"]
        written = write_texts(model, sources, how, [processor.eos_token_id], processor.pad_token_id or 0, budget)
        return read_texts(written, processor)

    def written_prompt(self, row: Dataset, processor: Any) -> list[int] | None:
        return self.encode({self.source: row[self.source][:]}, processor, None)["input_ids"][0]

    def prompts(self, rows: Dataset, processor: Any) -> Dataset:
        return rows

    def references(self, rows: Dataset) -> list[str]:
        return rows[self.target][:]

    def texts(self, rows: Dataset) -> list[str]:
        return rows[self.source][:]

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """The tokens of a source, and those of its target."""
        shown = []
        for ids in (example["input_ids"], example.get("labels", [])):
            tokens = processor.convert_ids_to_tokens(ids)
            shown.append(" ".join(tokens[:60]) + (" …" if len(tokens) > 60 else "") + f"  [{len(tokens)} tokens]")
        return "  ->  ".join(shown)

    def example_call(self) -> str:
        return 'hf_sft.predict(run, ["A text."])'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        texts = ["the coach was good", "the bank cut its rates again", "the court ruled", "shares fell in the last minute"] * 3
        return cls(type="seq2seq"), Dataset.from_dict({"source": texts, "target": [text.split()[-1] for text in texts]})
