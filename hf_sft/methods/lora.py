"""Low-rank updates of the body's weights, and a head that is trained whole. https://huggingface.co/papers/2106.09685

Its relatives change one thing each: rsLoRA the scale (2312.03732), DoRA learns a weight's size apart from its direction
(2402.09353), LoRA+ the rate of one factor (2402.12354), PiSSA where the factors begin (2404.02948).
"""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_sft.config.training import Training
from hf_sft.data.examples import Examples
from hf_sft.errors import RecipeError, nearest, suggest
from hf_sft.methods import ItemsOf, Method, Phase, constant, unchanged
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.tasks import Task

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_plus": {},
    "pissa": {"init_lora_weights": "pissa"},
}
"""Fields of `LoraConfig` for each variant."""
FASTER = 16.0
"""LoRA+: the rate of the factor that begins at zero, over that of the other, as its authors advise."""


class Lora(Method):
    """Train a low-rank update of each linear layer of the body (each convolution, if it has none), and the head.

    Scores are near full fine-tuning, with a fraction of the memory.
    """

    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-4,  # ten times that of full fine-tuning, whatever the rank (Schulman, LoRA Without Regret, 2025)
        "num_train_epochs": 3,
        "warmup_steps": 0.1,
    }

    r: int = Field(default=8, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by alpha / r; by alpha / √r with rslora."""
    variant: Literal["lora", "rslora", "dora", "lora_plus", "pissa"] = "lora"
    """rslora for high ranks, dora near full at low ones, lora_plus to learn in fewer steps, pissa to begin at the largest
    directions of the weights."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the update."""
    target_modules: tuple[str, ...] | None = None
    """Names (or ends of names) of linear layers; all of the body's when not given."""
    output_layer: Literal["whole", "lora", "frozen"] = "whole"
    """What is trained of an output layer that scores tokens and is not tied to the embeddings (lm_head): all of it, a low-rank
    update, or nothing."""
    merge: bool = True
    """Add the updates to the weights at the end; otherwise the run folder holds an adapter."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear_is_the_default(cls, names: Any) -> Any:
        if names == "all-linear":
            raise PydanticCustomError("target_modules", "leave it out: all linear layers of the body are the default")
        return names

    @model_validator(mode="after")
    def _merged_where_it_must_be(self) -> "Lora":
        if self.variant == "pissa" and not self.merge:
            raise PydanticCustomError("merge", "pissa changes what it adapts: its adapter fits no checkpoint; merge it")
        return self

    def reshape(self, loaded: LoadedModel, checkpoint: Checkpoint, examples: Examples, items: ItemsOf) -> LoadedModel:
        notes, output = [], self._own_output(loaded)
        total = sum(parameter.numel() for parameter in loaded.model.parameters())
        if output is not None:
            name, size = output
            detail = {"whole": "trained whole", "lora": "trained by a low-rank update", "frozen": "frozen"}[self.output_layer]
            other = "" if self.output_layer != "whole" else "  A low-rank update instead: `method.output_layer=lora`."
            notes.append(f"`{name}`, {size / total:.0%} of the weights, is not tied to the embeddings and is {detail}.{other}")
        if experts := self._experts(loaded):
            notes.append(f"{len(experts)} weights of experts ({experts[0]} …) take low-rank updates too.")
        if loaded.untrained_tokens:
            ids = ", ".join(map(str, loaded.untrained_tokens))
            detail = "" if output is None or self.output_layer == "whole" else "  To write them: `method.output_layer=whole`."
            notes.append(f"the embeddings of token(s) {ids} were never trained: they are trained too.{detail}")
        return replace(loaded, notes=(*loaded.notes, *notes))

    def _own_output(self, loaded: LoadedModel) -> tuple[str, int] | None:
        """The name and the size of an output layer of its own that the checkpoint brings."""
        layer = loaded.output_layer
        name = next((name for name, module in loaded.model.named_modules() if module is layer), None)
        if layer is None or name is None or name not in loaded.head_modules or f"{name}.weight" in loaded.new:
            return None
        return name, sum(parameter.numel() for parameter in layer.parameters())

    def _experts(self, loaded: LoadedModel) -> list[str]:
        """Weights of mixtures of experts, which are parameters of three dimensions and no layers."""
        if self.target_modules is not None or self.variant not in ("lora", "rslora") or self.dropout:
            return []
        beside = loaded.head | loaded.unused
        named = [(name, parameter) for name, parameter in loaded.model.named_parameters() if name not in beside]
        return [name for name, parameter in named if parameter.ndim == 3 and "experts" in name.split(".")]

    def phases(self, task: Task, training: Training, rows: int) -> tuple[Phase, ...]:
        training = self.complete(training, task, rows)
        finish = _merge if self.merge else unchanged
        prepare = partial(self._wrap, peft_type=task.peft_type)
        return (Phase("lora", training, prepare, finish, rate=faster if self.variant == "lora_plus" else constant),)

    def _wrap(self, loaded: LoadedModel, peft_type: str | None) -> PeftModel:
        """PEFT's own model; every module of the head is trained and saved whatever its name (peft #310, #577, #876)."""
        modules = {name: module for name, module in loaded.body.named_modules() if module is not loaded.output_layer}
        linear = {name: type(m) for name, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
        linear = linear or {name: type(m) for name, m in modules.items() if isinstance(m, nn.Conv2d) and m.groups == 1}
        below_head = {f"{loaded.prefix}{name}": kind for name, kind in linear.items()}
        below_head = {name: kind for name, kind in below_head.items() if f"{name}.weight" not in loaded.head}
        below_head = {name: kind for name, kind in below_head.items() if f"{name}.weight" not in loaded.unused}
        chosen, head, output = self._targets(below_head), loaded.head_modules, self._own_output(loaded)
        if output is not None and self.output_layer != "whole":
            head = [name for name in head if name != output[0]]
            chosen = [*chosen, *([output[0]] if self.output_layer == "lora" else [])]
        others: dict[str, Any] = {}
        if loaded.untrained_tokens:
            others["trainable_token_indices"] = [*loaded.untrained_tokens]
        if experts := self._experts(loaded):
            others["target_parameters"] = experts
        config = LoraConfig(
            task_type=peft_type,
            r=self.r,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=chosen,
            modules_to_save=head,
            fan_in_fan_out=any(below_head.get(name) is Conv1D for name in chosen),
            revision=loaded.revision,
            **VARIANTS[self.variant],
            **others,
        )
        return get_peft_model(loaded.model, config)

    def _targets(self, linear: dict[str, type]) -> list[str]:
        if self.target_modules is None:
            return list(linear)
        ends = tuple(self.target_modules)
        chosen = [name for name in linear if any(name == end or name.endswith(f".{end}") for end in ends)]
        missing = [end for end in ends if not any(name == end or name.endswith(f".{end}") for name in linear)]
        if missing:
            ended = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise RecipeError(
                f"`method.target_modules` names {', '.join(missing)}, which no linear layer of the body is called."
                f"{suggest(nearest(missing[0], ended))}\n  Its linear layers end in: {', '.join(ended)}."
            )
        return chosen


def faster(loaded: LoadedModel, parameter: str) -> float:
    """The factor that begins at zero learns at another rate."""
    return FASTER if "lora_B" in parameter else 1.0


def _merge(model: Any) -> PreTrainedModel:
    return model.merge_and_unload()
