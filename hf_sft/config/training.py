"""The `training` block: our own fields, and `transformers.TrainingArguments` by its own names."""

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from transformers import SchedulerType
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from hf_sft.block import Block
from hf_sft.errors import nearest, suggest

Strategy = Literal["no", "steps", "epoch"]

OWNED = {
    "output_dir": "`output.folder`",
    "seed": "`seed`, at the top of the recipe",
    "data_seed": "`seed`, at the top of the recipe",
    "push_to_hub": "`output.hub`",
    "hub_model_id": "`output.hub`",
    "hub_token": "the environment (HF_TOKEN)",
    "hub_private_repo": "`output.private`",
    "hub_revision": "`hf-sft publish`",
    "hub_strategy": "`hf-sft publish`",
    "hub_always_push": "`hf-sft publish`",
    "per_device_train_batch_size": "`training.batch_size`, the rows of one optimizer step over all processes",
    "gradient_accumulation_steps": "`training.batch_size`, the rows of one optimizer step over all processes",
    "per_device_eval_batch_size": "`training.micro_batch_tokens`",
    "auto_find_batch_size": "`training.micro_batch_tokens`",
    "train_sampling_strategy": "nothing: a step's rows are drawn by `seed` and cut by length",
    "accelerator_config": "the Accelerate configuration",
    "dataloader_drop_last": "nothing: every row is trained on",
    "average_tokens_across_devices": "nothing: the loss is always divided by the step's items over all processes",
    "label_smoothing_factor": "`aids`, as `{type: label_smoothing, epsilon: …}`",
    "neftune_noise_alpha": "nothing: noise on embeddings is not among the aids (`hf-sft list aids`)",
    "metric_for_best_model": "`evaluation.best`",
    "greater_is_better": "`evaluation.best`",
    "load_best_model_at_end": "`evaluation.best`",
    "fsdp": "the Accelerate configuration",
    "fsdp_config": "the Accelerate configuration",
    "deepspeed": "the Accelerate configuration",
    "use_cpu": "the Accelerate configuration",
    "remove_unused_columns": "nothing: the task says what the model is shown",
    "resume_from_checkpoint": "the command line: `hf-sft train … --resume` goes on with a run that was interrupted",
    "save_strategy": "`training.eval_strategy`: a checkpoint is written after each evaluation",
    "save_steps": "`training.eval_steps`: a checkpoint is written after each evaluation",
}


def _one_of(names: type[Enum], what: str) -> Callable[[str], str]:
    """A validator that takes the values of an enumeration of transformers', and suggests the nearest to what is none."""
    allowed = [str(name.value) for name in names]

    def check(value: str) -> str:
        if value not in allowed:
            plain = value.lower().replace("_", "")
            longer = next((name for name in allowed if name.replace("_", "").startswith(plain)), None)
            hint = suggest(longer or nearest(value, allowed))
            raise ValueError(f"must be one of {', '.join(allowed[:6])} …; got the {what} '{value}'.{hint}")
        return value

    return check


def _require_trackers(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    for name in (value,) if isinstance(value, str) else value:
        if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
            hint = suggest(nearest(name, INTEGRATION_TO_CALLBACK))
            raise ValueError(f"must be none, all, or trackers ({', '.join(INTEGRATION_TO_CALLBACK)}); got '{name}'.{hint}")
        if name not in ("none", "all", *get_available_reporting_integrations()):
            raise ValueError(f"names the tracker `{name}`, which is not installed. Install it: pip install {name}")
    return value


class Training(Block):
    """How long, how fast, and in steps of how many rows. What is not given here takes the method's default."""

    batch_size: int = Field(default=32, ge=1)
    """Rows per optimizer step, over all processes; how they are cut into micro-batches is the machine's business."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens, padding included, that one forward pass may hold; by the device when not given."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """How often each row is seen; when not given, the method's number, and more often where rows are few."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps; overrides `num_train_epochs` when positive."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """The highest learning rate."""
    lr_scheduler_type: Annotated[str, AfterValidator(_one_of(SchedulerType, "schedule"))] = "linear"
    """How the learning rate falls: a name of `transformers.SchedulerType`."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Arguments of the schedule."""
    warmup_steps: float = Field(default=0.1, ge=0)
    """Steps over which the learning rate rises; below 1, a share of all steps."""
    optim: Annotated[str, AfterValidator(_one_of(OptimizerNames, "optimizer"))] = "adamw_torch_fused"
    """The optimizer: a name of `transformers.training_args.OptimizerNames`; not fused where the device has no such kernel."""
    optim_args: str | None = None
    """Arguments of the optimizer, as `transformers` writes them: "momentum=0.9"."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decay of weights (biases and norms are left out)."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the gradient's mean."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the gradient's square."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Adam's guard against division by zero."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them."""
    eval_strategy: Strategy = "epoch"
    """When the validation split is scored and a checkpoint written."""
    eval_steps: float | None = Field(default=None, gt=0)
    """Steps between two evaluations, for `eval_strategy: steps`; below 1, a share of all steps."""
    save_total_limit: int = Field(default=2, ge=1)
    """Number of checkpoints on disk during training, beside the best."""
    save_minutes: float = Field(default=15.0, gt=0)
    """Minutes after which a checkpoint is written, where no evaluation writes one before."""
    max_skipped_steps: int = Field(default=0, ge=0)
    """Steps whose loss or gradient is not finite that may be left out before the training is given up."""
    logging_steps: float = Field(default=10.0, gt=0)
    """Steps between two log lines; below 1, a share of all steps."""
    report_to: Annotated[str | tuple[str, ...], AfterValidator(_require_trackers)] = "none"
    """Trackers, as `transformers` names them."""
    run_name: str | None = None
    """The run's name for trackers."""
    bf16: bool | None = None
    """Autocast to bfloat16; by the machine when not given."""
    fp16: bool | None = None
    """Autocast to float16; never by default."""
    tf32: bool | None = None
    """TensorFloat-32 matrix products on Nvidia GPUs."""
    activation_checkpointing: bool = False
    """Trade time for memory: activations are computed again in the backward pass."""
    torch_compile: bool = False
    """Compile the model with `torch.compile`."""
    full_determinism: bool = False
    """Only deterministic kernels."""
    dataloader_num_workers: int = Field(default=0, ge=0)
    """Processes that collate ahead."""
    dataloader_pin_memory: bool = True
    """Pin collated batches for faster copies to a GPU."""
    disable_tqdm: bool | None = None
    """No progress bars."""
    ddp_find_unused_parameters: bool | None = False
    """For models some of whose parameters take no part in a step."""
    ddp_timeout: int = Field(default=1800, ge=1)
    """Seconds that a process waits for the others."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_owned(cls, fields: Any) -> Any:
        owned = [name for name in fields if name in OWNED] if isinstance(fields, dict) else []
        if owned:
            where = "; ".join(f"`{name}` belongs to {OWNED[name]}" for name in owned)
            raise PydanticCustomError("owned", "{where}", {"where": where, "fields": owned})
        return fields

    def with_defaults(self, defaults: dict[str, Any]) -> "Training":
        """This block with a method's defaults where the recipe says nothing."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return Training.model_validate({**defaults, **given})
