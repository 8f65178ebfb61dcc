"""What our trainer overrides in `transformers.Trainer`, and the parameters that it was written for.

Resuming to the bit and steps of whole batches have no public seam: the loop of `Trainer` calls these methods. Another version
may call them otherwise, or not at all, and a run would be wrong without a word; so a run compares them first. The lines of the
loop that call them are checked by tests/contract/test_package.py, with each version that pyproject.toml allows.
"""

import inspect

import transformers
from transformers import Trainer

from hf_sft.errors import HfSftError

TESTED = ">=5.23,<5.25"
"""Versions of transformers; the same as in pyproject.toml."""
OVERRIDDEN = {
    "_get_grad_norm": ("model", "grad_norm"),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_inner_training_loop": ("batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_rng_state": ("checkpoint",),
    "_load_scaler": ("checkpoint",),
    "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_run_epoch": (
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_save_checkpoint": ("model", "trial"),
    "create_optimizer": ("model",),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "floating_point_ops": ("inputs",),
    "get_train_dataloader": (),
    "predict": ("test_dataset", "ignore_keys", "metric_key_prefix"),
    "save_model": ("output_dir", "_internal_call"),
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
}
"""Each method's parameters, without `self`."""


def require_known_trainer() -> None:
    """Raises `HfSftError` if a method that ours overrides is not there, or takes other parameters."""
    for name, known in OVERRIDDEN.items():
        method = getattr(Trainer, name, None)
        found = None if method is None else tuple(inspect.signature(method).parameters)[1:]
        if found != known:
            what = "is not there" if found is None else f"takes ({', '.join(found)})"
            raise HfSftError(
                f"`transformers.Trainer.{name}` {what} in transformers {transformers.__version__}; hf_sft was written for "
                f"({', '.join(known)}).\n"
                f"  Install a version that it was tested with: pip install 'transformers{TESTED}'"
            )
