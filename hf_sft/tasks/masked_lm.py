"""Which token stood where there is a mask now?

The data: a column of texts. Of each window of a text a share of the tokens is predicted: always round(p·n) of n, and at least
one, so that what a step's loss is divided by is known before it runs. Eight of ten of them are masked, one becomes another
token, one stays (Devlin and others, 2018). Which ones: in training by the seed, the epoch and the window's own tokens, however
the step is cut; in evaluation by the window's tokens alone, so that every evaluation asks the same.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.answers.likelihoods import MaskedAnswers
from hf_sft.errors import CheckpointError, DataError
from hf_sft.losses import Items, RowOutputs, sum_by_example
from hf_sft.tasks import Batch, GenerationOptions, Labels, Task
from hf_sft.tasks.common.baselines import Answerer, Fit
from hf_sft.tasks.common.text_only import Unlabelled
from hf_sft.tasks.common.windows import count_most

MASKED, OTHER = 0.8, 0.1
"""Of the predicted tokens: those that are masked, and those that become another token."""
WORDS = 12
"""Of a text, as a prompt for the report."""
FEW = 5
"""The second accuracy counts a token that is among so many."""


class MaskedLm(Unlabelled, Task):
    """Predict masked tokens: go on with the pre-training of a BERT, or begin it."""

    auto_model: ClassVar[Any] = AutoModelForMaskedLM
    pipeline_tag: ClassVar[str] = "fill-mask"
    peft_type: ClassVar[str | None] = None
    no_loss_message: ClassVar[str | None] = "have no token but special ones, so none that can be predicted"
    writes: ClassVar[dict[str, None]] = {"text": None, "masks": None}
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(("mlm", "fill_mask"), "masked_lm")

    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a window, as many of which as needed show a text; as many as the checkpoint allows when not given."""
    probability: float = Field(default=0.15, gt=0, lt=1)
    """The share of tokens that are predicted."""
    whole_words: bool = False
    """Predict all tokens of a word, or none; one word of a window may be torn, so that the share is right."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("perplexity", "accuracy", "accuracy_at_5")

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        return self, None, []

    def probe(self, model: nn.Module, processor: Any) -> tuple[Self, list[str]]:
        if processor.mask_token_id is None:
            raise CheckpointError(
                f"the tokenizer of {type(model).__name__} has no mask token.\n"
                "  Take a checkpoint like BERT or RoBERTa, or the task causal_lm."
            )
        return self, []

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Windows of texts: `input_ids` as they stand (with `token_type_ids` where the processor has them), and `words`: the
        word that each token is of, -1 for special ones."""
        windows = processor(
            rows[self.text],
            truncation=True,
            max_length=count_most(processor, self.max_length),
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        examples: dict[str, list] = {n: column for n, column in windows.items() if n in processor.model_input_names}
        examples["words"] = [[-1 if word is None else word for word in each.word_ids] for each in windows.encodings]
        examples["row"] = list(windows["overflow_to_sample_mapping"])
        examples["items"] = [self._count(words) for words in examples["words"]]
        examples["truncated"] = [False] * len(examples["row"])
        return examples

    def _count(self, words: list[int]) -> int:
        real = sum(word >= 0 for word in words)
        return min(real, max(1, round(self.probability * real)))

    def choose(self, ids: list[int], words: list[int], draw: tuple[int, ...]) -> tuple[np.ndarray, np.random.Generator]:
        """The places of a window that are predicted, by a draw of its own."""
        random = np.random.default_rng([*draw, zlib.crc32(np.asarray(ids, dtype=np.int64).tobytes())])
        places = np.flatnonzero(np.asarray(words) >= 0)
        if self.whole_words:
            of_word = np.asarray(words)[places]
            rank = dict(zip(order := random.permutation(np.unique(of_word)), range(len(order)), strict=True))
            chosen = places[np.argsort([rank[word] for word in of_word], kind="stable")]
        else:
            chosen = random.permutation(places)
        return chosen[: self._count(words)], random

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        ordinary = np.setdiff1d(np.arange(len(processor)), processor.all_special_ids)

        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            batch["originals"] = batch["input_ids"].clone()
            batch["predicts"] = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            for i, example in enumerate(examples):
                chosen, random = self.choose(example["input_ids"], example["words"], example.get("draw", ()))
                fate = random.random(len(chosen))
                shown = np.where(fate < MASKED, processor.mask_token_id, random.choice(ordinary, len(chosen)))
                changed = fate < MASKED + OTHER
                batch["predicts"][i, chosen] = True
                batch["input_ids"][i, chosen[changed]] = torch.as_tensor(shown[changed])
            return batch

        return collate

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """The predicted tokens: only of them are there logits."""
        return Items(self._logits(model, batch), batch["originals"][batch["predicts"]])

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Heads work on each position by itself, so they get only the masked positions."""

        def select(body: nn.Module, given: Any, output: Any) -> Any:
            output["last_hidden_state"] = output["last_hidden_state"][batch["predicts"]].unsqueeze(0)
            return output

        whole = next(module for module in model.modules() if isinstance(module, PreTrainedModel))  # DDP and PEFT wrap it
        selecting = whole.base_model.register_forward_hook(select)
        try:
            inputs = {name: tensor for name, tensor in batch.items() if name not in ("originals", "predicts")}
            return model(**inputs).logits[0].float()
        finally:
            selecting.remove()

    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Of each window the nats of its predicted tokens together, how many they are, how many the model names first, and how
        many among its first five; float32, shape (4,)."""
        items = self.items(model, batch)
        losses = functional.cross_entropy(items.logits, items.targets, reduction="none")
        best = items.logits.topk(min(FEW, items.logits.shape[-1]), dim=-1).indices == items.targets.unsqueeze(1)
        sums = torch.stack([losses, torch.ones_like(losses), best[:, 0].float(), best.any(1).float()], dim=1)
        return sum_by_example(sums, batch["predicts"].sum(1))

    def answer_kind(self) -> AnswerKind:
        return MaskedAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        return MaskedAnswers(*np.array([np.sum(windows, axis=0, dtype=np.float64) for windows in outputs]).reshape(-1, 4).T)

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        def unigram() -> Answerer:
            """How frequent each token is in train, whatever stands around it."""
            counts = np.bincount(np.concatenate([np.asarray(ids) for _, ids, _ in self._predicted(train, processor, True)]))
            counts = np.pad(counts, (0, len(processor) - len(counts)))
            nats, rank = -np.log((counts + 1) / (counts.sum() + len(counts))), np.argsort(np.argsort(-counts, kind="stable"))

            def answer(rows: Dataset) -> Answers:
                sums = np.zeros((len(rows), 4))
                for row, ids, places in self._predicted(rows, processor):
                    tokens = np.asarray(ids)[places]
                    sums[row] += nats[tokens].sum(), len(tokens), (rank[tokens] < 1).sum(), (rank[tokens] < FEW).sum()
                return MaskedAnswers(*sums.T)

            return answer

        return {"unigram": unigram}

    def _predicted(self, rows: Dataset, processor: Any, every: bool = False) -> Iterator[tuple[int, list[int], np.ndarray]]:
        """Row, tokens and predicted places of each window, as evaluation asks; of `every` the ordinary tokens alone."""
        examples = self.encode({self.text: rows[self.text][:]}, processor, None)
        for row, ids, words in zip(examples["row"], examples["input_ids"], examples["words"], strict=True):
            shown = [token for token, word in zip(ids, words, strict=True) if word >= 0] if every else ids
            yield row, shown, np.array([], dtype=int) if every else self.choose(ids, words, ())[0]

    def complete(
        self, model: Any, rows: Dataset, processor: Any, how: GenerationOptions, budget: int
    ) -> Iterator[dict[str, Any]]:
        """Each text with its masks filled, and of each mask the five likeliest tokens."""
        texts, mask = rows[self.text][:], processor.mask_token
        if without := [row for row, text in enumerate(texts) if mask not in text]:
            raise DataError(
                f"text {without[0]} has no {mask}: there is nothing to fill.  Write {mask} where a token shall stand."
            )
        for text in texts:
            inputs = processor(text, return_tensors="pt", truncation=True, max_length=processor.model_max_length)
            ids = inputs["input_ids"][0]
            places = (ids == processor.mask_token_id).nonzero().flatten()
            with torch.no_grad():
                chances = model(**inputs.to(model.device)).logits[0].float().cpu()[places].softmax(-1)
            best = chances.topk(min(FEW, chances.shape[-1]), dim=-1)
            ids[places] = best.indices[:, 0]
            masks = [
                [{"token": processor.decode([i]).strip(), "score": round(float(p), 6)} for p, i in zip(*each, strict=True)]
                for each in zip(best.values, best.indices, strict=True)
            ]
            yield {"text": processor.decode(ids, skip_special_tokens=True), "masks": masks}

    def prompts(self, rows: Dataset, processor: Any) -> Dataset:
        """The first words of each text, the middle one masked."""
        begun = [text.split()[:WORDS] for text in rows[self.text][:]]
        for words in begun:
            words[len(words) // 2] = processor.mask_token
        return Dataset.from_dict({self.text: [" ".join(words) for words in begun]})

    def example_call(self) -> str:
        return 'answer(f"The weather is {answer.tokenizer.mask_token} today.")'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        texts = ["the coach was good", "the bank cut its rates again", "the court ruled", "shares fell in the last minute"] * 3
        return cls(type="masked_lm"), Dataset.from_dict({"text": texts})
