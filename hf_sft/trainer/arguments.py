"""From the `training` block and the machine to `transformers.TrainingArguments`."""

from pathlib import Path

from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from transformers import TrainingArguments

from hf_sft.config.machine import Machine
from hf_sft.config.training import Training


def training_arguments(
    training: Training, machine: Machine, folder: Path, seed: int, best: tuple[str, bool] | None
) -> TrainingArguments:
    """The `TrainingArguments` of one phase; `best` is (metric, greater is better)."""
    ours = {"batch_size", "micro_batch_tokens", "bf16", "fp16", "report_to", "disable_tqdm", "dataloader_pin_memory"}
    ours |= {"save_minutes", "max_skipped_steps"}
    passed = {name: value for name, value in training.model_dump().items() if name not in ours}
    evaluated = best is not None and training.eval_strategy != "no"
    # torch's own list for `fused=True` (torch/optim/optimizer.py reads it too); elsewhere AdamW would refuse.
    fused = machine.device in _get_fused_kernels_supported_devices()
    optim = "adamw_torch" if training.optim == "adamw_torch_fused" and not fused else training.optim
    return TrainingArguments(
        **{**passed, "eval_strategy": training.eval_strategy if evaluated else "no", "optim": optim},
        output_dir=str(folder),
        seed=seed,
        per_device_train_batch_size=training.batch_size,
        bf16=machine.precision == "bf16",
        fp16=machine.precision == "fp16",
        use_cpu=machine.device == "cpu",
        dataloader_pin_memory=training.dataloader_pin_memory and machine.device != "cpu",
        report_to=[training.report_to] if isinstance(training.report_to, str) else list(training.report_to),
        disable_tqdm=machine.quiet if training.disable_tqdm is None else training.disable_tqdm,
        remove_unused_columns=False,
        save_strategy=training.eval_strategy if evaluated else "no",
        save_steps=training.eval_steps or 500,
        load_best_model_at_end=evaluated,
        metric_for_best_model=best[0] if best and evaluated else None,
        greater_is_better=best[1] if best and evaluated else None,
        log_level="error",
        log_level_replica="error",
    )
