"""A Trainer that resumes from its checkpoints bit for bit, and ends after a step on a signal.

Checkpoints hold all that the rest of a training depends on: trainable weights, optimizer, schedule, random generators of each
process, the callbacks' state, the curve so far. The position inside an epoch is the step's number, since the order of rows
depends on the seed and the epoch alone.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from hf_sft.config.machine import Machine
from hf_sft.errors import RecipeError
from hf_sft.storage import checkpoint_files as checkpoints
from hf_sft.trainer.history import TrainingCurve
from hf_sft.trainer.restore import COUNTED, fitting, load_weights, restore_curve
from hf_sft.trainer.signals import Interrupted, SignalHandler


class ResumableTrainer(Trainer):
    """Checkpoints and resuming; `StepTrainer` adds the step."""

    curve: TrainingCurve
    machine: Machine
    optimizer: Any
    lr_scheduler: Any
    callback_handler: Any

    def __init__(
        self, *args: Any, folder: Path, begun: Any, signal_handler: SignalHandler | None, save_minutes: float, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.folder, self._begun = folder, begun
        """The folder of its checkpoints; trackers write to `args.output_dir`."""
        self.signal_handler, self._save_seconds = signal_handler or SignalHandler(), 60 * save_minutes
        self._resumed: tuple[Path, dict[str, Any]] | None = None
        self._asked = 0
        self._began = self._saved_at = time.monotonic()
        self._rates: list[dict[str, Any]] = []
        self._unsaved_best: dict[str, Tensor] | None = None
        self._told_unsaved = False
        self._group: Any = None
        self.add_callback(_AfterStep(self))

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before it was stopped."""
        return time.monotonic() - self._began

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Like `Trainer.train`; True resumes from the newest intact checkpoint, if there is one."""
        path = checkpoints.find_newest(self.folder) if resume_from_checkpoint is True else resume_from_checkpoint
        if path:
            self._resume(Path(path))
        return super().train(None, *args, **kwargs)

    def gather_losses(self) -> None:
        """Fetch the losses from the device."""

    def started(self, at: float) -> None:
        """Start of the training by the monotonic clock; storing features is a part of it."""
        self._began = at

    def add_up_counts(self) -> None:
        """Sum the processes' own counts over all processes."""
        for name in COUNTED:
            own = torch.tensor(float(getattr(self.curve, name)), dtype=torch.float64, device=self.args.device)
            total: Any = self.accelerator.reduce(own, "sum")
            setattr(self.curve, name, int(total))

    def save_finished(self) -> None:
        """Write a checkpoint that marks the training as complete, and remove those to resume from."""
        if not self.is_world_process_zero():
            return
        counts = [{name: getattr(self.curve, name) for name in COUNTED}]
        path = self.folder / checkpoints.FINISHED
        try:
            checkpoints.write(path, self.trainable_state(), {"curve": asdict(self.curve), "counts": counts})
            checkpoints.keep_only(self.folder, 0, None)
        except OSError as error:
            self._say_unsaved(path, error.strerror or str(error))

    # What a checkpoint holds.

    def trainable_state(self) -> dict[str, Tensor]:
        """The trainable parameters, and the buffers that are saved, by name."""
        model: Any = self.accelerator.unwrap_model(self.model)
        names = {name for name, p in model.named_parameters() if p.requires_grad} | {name for name, _ in model.named_buffers()}
        return {name: tensor for name, tensor in model.state_dict().items() if name in names}

    def _gather_state(self) -> dict[str, Any]:
        """The state without the weights; called on every process."""
        scaler, state = self.accelerator.scaler, replace(self.state, stateful_callbacks={}, best_model_checkpoint=None)
        return {
            "trainer": asdict(state),
            "best_step": self.state.best_global_step,
            "stopped": self.control.should_training_stop,
            "callbacks": [callback.state()["attributes"] for callback in self._remembering()],
            "optimizer": self.optimizer.state_dict(),
            "rates": self._rates,
            "kinds": self._kinds(),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "draws": checkpoints.capture_draws(self.args.device.type),
            "curve": {**asdict(self.curve), "seconds": self.seconds},
            "counts": gather_object([{name: getattr(self.curve, name) for name in COUNTED}]),
        }

    def _remembering(self) -> Iterator[Any]:
        return (callback for callback in self.callback_handler.callbacks if isinstance(callback, ExportableState))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint after an evaluation, after some minutes, or on a signal, which ends the training."""
        self.gather_losses()
        step, best, state, failed = self.state.global_step, self.state.best_global_step, self._gather_state(), None
        path = self.folder / checkpoints.name_of(step)
        if self.is_world_process_zero():
            try:
                checkpoints.write(path, self.trainable_state(), state)
                checkpoints.keep_only(self.folder, self.args.save_total_limit or 1, best)
            except OSError as error:
                failed = error.strerror or str(error)
                self._say_unsaved(path, failed)
        (failed,) = broadcast_object_list([failed])
        if best == step:
            self._unsaved_best = {name: tensor.clone() for name, tensor in self.trainable_state().items()} if failed else None
        self.state.best_model_checkpoint = None if best is None else str(self.folder / checkpoints.name_of(best))
        self._saved_at = time.monotonic()
        if self._asked:
            raise Interrupted(self._asked)

    def _say_unsaved(self, path: Path, reason: str) -> None:
        if not self._told_unsaved:
            self._told_unsaved = True
            before = checkpoints.list_steps(self.folder)
            last = f"`{before[-1]}` is kept" if before else "there is none yet"
            print(f"The checkpoint `{path}` can't be written: {reason}.  {last}; the training goes on.", file=sys.stderr)

    # When.

    def _after_step(self, control: Any) -> None:
        """Write a checkpoint if it is time, or if a process got a signal; all processes decide alike."""
        due = self.is_world_process_zero() and time.monotonic() - self._saved_at > self._save_seconds
        self._asked, due = self._agree(self.signal_handler.signal_number, int(due))
        # What ends an epoch is written after its evaluation, which is to come.
        by_epoch, step = self.args.save_strategy == "epoch", self.state.global_step
        ends = control.should_training_stop or step % len(self.callback_handler.train_dataloader) == 0
        if (self._asked or due) and not (by_epoch and ends):
            control.should_save = True

    def _agree(self, *numbers: int) -> tuple[int, ...]:
        """The maximum of each number over all processes; on the CPU, so that the device need not finish first."""
        if self.accelerator.num_processes == 1:
            return numbers
        if self._group is None:
            self._group = distributed.new_group(backend="gloo")
        reduced = torch.tensor(numbers)
        distributed.all_reduce(reduced, distributed.ReduceOp.MAX, self._group)
        return tuple(reduced.tolist())

    # How it goes on.

    def _resume(self, path: Path) -> None:
        state = checkpoints.read_state(path)
        self._load_from_checkpoint(path)
        restore_curve(self.curve, state)
        self.machine = replace(self.machine, micro_batch_tokens=self.curve.micro_batch_tokens)
        self._began -= self.curve.seconds
        self._resumed = path, state

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        if self._resumed:
            kwargs["resume_from_checkpoint"] = str(self._resumed[0])
        return super()._inner_training_loop(*args, **kwargs)

    def _init_training_state(
        self, max_steps: int, steps_of_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        begun = super()._init_training_state(max_steps, steps_of_epoch, num_train_epochs, None, trial)
        if not self._resumed:
            return begun
        path, state = self._resumed
        self.state = TrainerState(**state["trainer"])
        self.state.compute_steps(self.args, max_steps)
        self.state.init_training_references(self, max_steps, num_train_epochs, trial)
        if (best := self.state.best_global_step) is not None:
            self.state.best_model_checkpoint = str(self.folder / checkpoints.name_of(best))
        with fitting(path):
            for callback, memory in zip(self._remembering(), state["callbacks"], strict=True):
                for name, value in memory.items():
                    setattr(callback, name, value)
        return divmod(self.state.global_step, steps_of_epoch)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._rates = self._rates or self._read_rates()
        return prepared

    def _read_rates(self) -> list[dict[str, Any]]:
        """The recipe's options of each parameter group, before the first step changes them."""
        return [{name: value for name, value in group.items() if name != "params"} for group in self._groups()]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not (self._resumed and self._resumed[1]["stopped"]):  # else its last step was taken
            super()._run_epoch(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Optimizer state and schedule position come from the checkpoint, learning rates from the recipe."""
        if not self._resumed:
            return
        self._rates = self._read_rates()
        path, state = self._resumed
        for field, then, now in zip(("optim", "lr_scheduler_type"), state["kinds"], self._kinds(), strict=True):
            if then != now:
                raise RecipeError(
                    f"`training.{field}` can't change in the middle of a run: `{path}` was written with {then}, and this is "
                    f"{now}.\n  Put it back, or begin anew in another folder (output.folder=…)."
                )
        with fitting(path):
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])
            self._take_rates(state["rates"])

    def _take_rates(self, then: list[dict[str, Any]]) -> None:
        """Apply learning rates, decay and other options of the optimizer that have changed since the run began."""
        schedule: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        for group, old, new in zip(self._groups(), then, self._rates, strict=True):
            group.update({name: value for name, value in new.items() if name != "lr" and value != old.get(name)})
            first, now = (rates.get("initial_lr", rates["lr"]) for rates in (old, new))
            if first:
                group["lr"] *= now / first
        if hasattr(schedule, "base_lrs"):
            schedule.base_lrs = [rates.get("initial_lr", rates["lr"]) for rates in self._rates]
        if isinstance(schedule, LambdaLR):  # the recipe's schedule, at this step
            for group, base, factor in zip(self._groups(), schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = base * factor(schedule.last_epoch)
            # What `get_last_lr` answers until the next step; nothing public sets it (torch 2, lr_scheduler.py).
            schedule._last_lr = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _kinds(self) -> list[str]:
        """The classes of optimizer and schedule; the state of one does not fit another."""
        plain = (
            getattr(self.optimizer, "optimizer", self.optimizer),
            getattr(self.lr_scheduler, "scheduler", self.lr_scheduler),
        )
        return [type(each).__name__ for each in plain]

    def _load_scaler(self, checkpoint: Any) -> None:
        if self._resumed and self.accelerator.scaler is not None and self._resumed[1]["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self._resumed[1]["scaler"])

    def _load_rng_state(self, checkpoint: Any) -> None:
        if self._resumed:
            checkpoints.restore_draws(self._resumed[1]["draws"], self.args.device.type)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        path = Path(resume_from_checkpoint)
        with fitting(path):
            load_weights(self.accelerator.unwrap_model(self.model), checkpoints.read_weights(path))

    def _load_best_model(self) -> None:
        if self._unsaved_best is not None:
            load_weights(self.accelerator.unwrap_model(self.model), self._unsaved_best)
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


class _AfterStep(TrainerCallback):
    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer._begun is not None and state.is_world_process_zero:
            self.trainer._begun()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._after_step(control)
