"""A thin `transformers.Trainer`: its loader yields whole optimizer steps, its step cuts them.

The loss of a step is a sum over items divided by the step's items over all processes, however the step is cut
(upstream's is not: transformers #47688).
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object, set_seed
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PredictionOutput

from hf_sft.data.examples import Examples, MicroBatch, StepSampler, cut_step, to_device
from hf_sft.errors import Diverged, built_by, list_few
from hf_sft.evaluation.inference import run_blocks
from hf_sft.losses import RowOutputs
from hf_sft.models.loading import save_model
from hf_sft.storage import checkpoint_files as checkpoints
from hf_sft.tasks import Batch
from hf_sft.trainer.arguments import training_arguments
from hf_sft.trainer.fit_config import FitConfig, FitState
from hf_sft.trainer.module_modes import frozen_modules
from hf_sft.trainer.resumable_trainer import ResumableTrainer

LOSSES_AT_ONCE = 10
"""Steps whose losses are fetched together: fetching waits for the device."""


@dataclass
class _Taken:
    """A step whose loss is still on the device."""

    loss: Tensor
    places: list[int]
    """Its examples, of this process."""
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Of its gradients."""


class StepTrainer(ResumableTrainer):
    """The plain Trainer, but for: what a step is, which modules are in training mode, how it is scored and saved."""

    def __init__(self, state: FitState, config: FitConfig):
        self.phase, self.loaded, self.examples, self.curve = state.phase, state.loaded, state.examples, state.curve
        self.hooks, self.machine, self._in_step = config.hooks, config.machine, state.in_step
        self._taken: list[_Taken] = []
        self._sampler: StepSampler | None = None
        training = state.phase.training
        set_seed(config.seed)
        super().__init__(
            model=state.model,
            args=training_arguments(training, config.machine, config.logs or config.folder, config.seed, config.hooks.best),
            train_dataset=state.examples["train"],
            eval_dataset=state.examples["validation"],
            processing_class=config.processor,
            callbacks=[make() for make in state.phase.callbacks],
            folder=config.folder,
            begun=config.begun,
            signal_handler=config.signal_handler,
            save_minutes=training.save_minutes,
        )
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)
        self._resting = frozen_modules(state.loaded, state.model)
        state.curve.micro_batch_tokens = config.machine.micro_batch_tokens

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's own, its groups split by what the phase multiplies a parameter's learning rate by."""
        with built_by("`training.optim`", self.phase.training.optim, "`training.optim_args`"):
            optimizer = super().create_optimizer(*args, **kwargs)
        names = {p: name for name, p in self.accelerator.unwrap_model(self.model).named_parameters()}
        groups, optimizer.param_groups = optimizer.param_groups, []
        for group in groups:
            by_rate: dict[float, list] = {}
            for parameter in group["params"]:
                by_rate.setdefault(self.phase.rate(self.loaded, names[parameter]), []).append(parameter)
            for rate, parameters in by_rate.items():
                optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * rate})
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with built_by("`training.lr_scheduler_type`", self.phase.training.lr_scheduler_type, "`training.lr_scheduler_kwargs`"):
            return super().create_scheduler(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        self._sampler = sampler = StepSampler(
            self.examples["train"],
            self.phase.training.batch_size,
            self.machine.micro_batch_tokens,
            self.args.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        loader = DataLoader(
            self.examples["train"],
            batch_sampler=sampler,
            collate_fn=_as_mapping,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=False,
        )
        # The sampler already gives each process its own share, so accelerate gets one process.
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One optimizer step's forward and backward passes; returns the mean loss per item, as Trainer averages it."""
        model.train()
        if self.optimizer is not None:
            self.curve.learning_rates.append(max(float(group["lr"]) for group in self._groups()))
        getattr(self.optimizer, "train", lambda: None)()  # schedule-free optimizers have two sets of weights
        for module in self._resting:
            module.eval()
        micro_batches = inputs["micro_batches"]
        with contextlib.ExitStack() as active:
            for context in (*self._in_step, self._cast_once):
                active.enter_context(context())
            while True:
                try:
                    total = self._add_gradients(model, micro_batches)
                    break
                except RuntimeError as error:
                    if not should_reduce_batch_size(error) or all(len(each.places) == 1 for _, each in micro_batches):
                        raise
                model.zero_grad()
                clear_device_cache(garbage_collection=True)
                micro_batches = self._cut_finer(micro_batches)
        for _, micro_batch in micro_batches:
            self._count(micro_batch)
        self._taken.append(_Taken(total, [place for _, each in micro_batches if each.counts for place in each.places]))
        return total

    def _add_gradients(self, model: nn.Module, micro_batches: list[tuple[Batch, MicroBatch]]) -> Tensor:
        """A forward and a backward pass of each micro-batch; gives the step's loss."""
        total = torch.zeros((), device=self.args.device)
        for place, (batch, micro_batch) in enumerate(micro_batches):
            last = place == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                batch = to_device(batch, self.args.device)
                with self.compute_loss_context_manager():
                    loss = self.phase.loss(self.phase.item_loss, partial(self.hooks.items, model), batch)
                # Gradients are averaged over processes, so each adds its share of the sum times their number. A step
                # without items has no loss, and no gradient.
                share = self.accelerator.num_processes * micro_batch.counts / max(1, micro_batch.step_items)
                loss = loss * share
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def _cut_finer(self, micro_batches: list[tuple[Batch, MicroBatch]]) -> list[tuple[Batch, MicroBatch]]:
        """The same examples in micro-batches of half the tokens, as all steps and evaluations from now on."""
        train, (_, first), tokens = self.examples["train"], micro_batches[0], self.machine.micro_batch_tokens
        several = [each.places for _, each in micro_batches if len(each.places) > 1]
        if all(len(each) * train.costs[list(each)].max() <= tokens for each in several):
            tokens = max(1, tokens // 2)
            self.machine, self.curve.micro_batch_tokens = replace(self.machine, micro_batch_tokens=tokens), tokens
            print(f"Out of memory: from now on micro-batches of {tokens:,} tokens; the step is repeated.", file=sys.stderr)
            if self._sampler is not None:
                self._sampler.budget = tokens
        # Else the loader had cut it before the last time that this happened.
        places = np.concatenate([each.places for _, each in micro_batches if each.counts] or [first.places])
        (cut,) = cut_step(places, train.costs, tokens, 1, first.step_items, first.draw)
        return [train[replace(each, counts=first.counts)] for each in cut]

    @contextlib.contextmanager
    def _cast_once(self) -> Iterator[None]:
        """Trainable weights are cast for the first forward pass, and reused in the others: autocast forgets them when its
        outermost context ends. What is not a forward pass runs as it would outside."""
        with self.machine.autocast(), torch.autocast(self.machine.device, enabled=False):
            yield

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """What upstream asks for before the optimizer's step. A step whose loss or gradient is not finite is left without
        gradients where that may be: then the optimizer does nothing."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        taken = self._taken[-1]
        taken.norm = torch.as_tensor(norm, dtype=torch.float32, device=self.args.device)
        if self.phase.training.max_skipped_steps and not self._scaled:
            finite: Any = self.accelerator.reduce((torch.isfinite(taken.loss) & torch.isfinite(taken.norm)).float(), "mean")
            if float(finite) < 1:
                model.zero_grad()
        if len(self._taken) >= LOSSES_AT_ONCE:
            self.gather_losses()
        return norm

    @property
    def _scaled(self) -> bool:
        """Whether a scaler looks for gradients that are not finite, and leaves out their steps."""
        return self.machine.precision == "fp16"

    def gather_losses(self) -> None:
        """Fetch the losses of the steps since the last time. Raises `Diverged` when one is not finite, or a gradient."""
        if not self._taken:
            return
        mine = torch.stack([torch.stack([each.loss, each.norm.to(each.loss.device)]) for each in self._taken])
        together: Any = self.accelerator.reduce(mine, "mean")
        taken, self._taken = self._taken, []
        for (loss, norm), step in zip(together.tolist(), taken, strict=True):
            self.curve.losses.append(loss)
            if math.isfinite(loss) and (self._scaled or math.isfinite(norm)):
                continue
            self.curve.skipped.append(len(self.curve.losses))
            if len(self.curve.skipped) > self.phase.training.max_skipped_steps:
                what = f"the loss of step {len(self.curve.losses)} is {loss}"
                what = f"the gradient of step {len(self.curve.losses)} is {norm}" if math.isfinite(loss) else what
                places: list[int] = gather_object(step.places)
                rows = sorted({self.examples["train"].row_of(place) for place in places})
                raise Diverged(explain_divergence(what, rows, self.folder))

    def _count(self, micro_batch: MicroBatch) -> None:
        if micro_batch.counts:
            costs = self.examples["train"].costs[list(micro_batch.places)]
            self.curve.examples += len(costs)
            if not self.curve.stored_features:
                self.curve.tokens += int(costs.sum())
                self.curve.padded_tokens += len(costs) * int(costs.max())

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Score the validation split; the same numbers on every process."""
        self.gather_losses()
        getattr(self.optimizer, "eval", lambda: None)()
        examples = self.examples["validation"] if eval_dataset is None else eval_dataset
        values = self.hooks.score(self._run(examples))
        self.curve.evaluations.append({"step": self.state.global_step, **values})
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _run(self, examples: Examples) -> Iterator[tuple[Dataset, RowOutputs]]:
        model, hooks = self.accelerator.unwrap_model(self.model), self.hooks
        return run_blocks(model, examples.blocks(), hooks.inference_step, self.machine, hooks.write)

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """The outputs of `inference_step` for examples, or for rows with the recipe's columns, with or without labels."""
        examples = self.hooks.read(test_dataset) if isinstance(test_dataset, Dataset) else test_dataset
        ran = list(self._run(examples))
        outputs: Any = _as_array([each for _, block in ran for row in block for each in row])
        if "labels" not in examples.encoded.column_names:
            return PredictionOutput(outputs, None, {})
        values = {f"{metric_key_prefix}_{name}": value for name, value in self.hooks.score(ran).items()}
        return PredictionOutput(outputs, _as_array(examples.encoded["labels"][:]), values)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model like any Trainer, with config and processor."""
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            save_model(model, self.loaded.model.config, self.processing_class, folder)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


def explain_divergence(found: str, rows: Sequence[int] = (), folder: Path | None = None) -> str:
    """The message for a loss or gradient that is not finite, with the step's rows and the checkpoint to resume from."""
    listed = f"\n  The step's rows of train: {list_few(rows, 32)}." if rows else ""
    whole = checkpoints.list_steps(folder) if folder else []
    last = f"\n  The last good checkpoint is `{whole[-1]}`: --resume --resume-anyway goes on from it." if whole else ""
    return (
        f"{found}: the training has diverged, and no model was saved or published.{listed}{last}\n"
        "  Lower `training.learning_rate`, raise `training.warmup_steps`, or use fp32 (`training.bf16=false`); look at the\n"
        "  rows too: `hf-sft check` shows the first.  `training.max_skipped_steps` leaves out so many such steps."
    )


def _as_array(values: Sequence[Any]) -> np.ndarray:
    """One array if all have one shape, else an array of objects."""
    if len({np.shape(value) for value in values}) == 1:
        return np.asarray(values)
    ragged = np.empty(len(values), dtype=object)
    ragged[:] = values
    return ragged


def _as_mapping(micro_batches: list) -> dict[str, Any]:
    """Trainer wants a mapping; without a key `labels` it scales nothing."""
    return {"micro_batches": micro_batches}


class Progress(ProgressCallback):
    """The progress bar with the loss beside it, instead of a line for each log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")
