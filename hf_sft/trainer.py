"""`fit` runs one phase on a thin `transformers.Trainer`: its loader yields whole optimizer steps, its step cuts them.

The loss of a step is a sum over items divided by the step's items over all processes, however the step is cut
(upstream's is not: transformers #47688).
"""

import contextlib
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device, set_seed
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import PredictionOutput

from hf_sft.batching import Examples, StepSampler
from hf_sft.curves import TrainingCurve
from hf_sft.dropout import CpuDropout
from hf_sft.encoding import encode_rows
from hf_sft.errors import RecipeError, built_by
from hf_sft.evaluation import EvaluationPlan, measure, run_model
from hf_sft.features import body_rests, store_features, stored_body
from hf_sft.heads import class_names
from hf_sft.label_columns import REGRESSION
from hf_sft.methods import Phase
from hf_sft.models import LoadedModel, save_model
from hf_sft.modes import attending, attention_for_training, resting_modules
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.training import Machine

MOVING = "model.safetensors"
"""The parameters that move, in a checkpoint of a phase; the rest are the starting checkpoint's."""


def fit(
    phase: Phase,
    loaded: LoadedModel,
    processor: Any,
    encoded: dict[str, Dataset],
    task: Task,
    plan: EvaluationPlan,
    machine: Machine,
    folder: Path,
    seed: int,
    store: bool = True,
) -> tuple[Any, TrainingCurve]:
    """Train one phase; gives the finished model, in eval mode, and how it went. `store` is whether the body may run once."""
    model, use_cache = phase.prepare(loaded), getattr(loaded.model.config, "use_cache", None)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    curve = TrainingCurve(phase.name, parameters=sum(n for n, _ in sizes), trainable=sum(n for n, moves in sizes if moves))
    started = time.perf_counter()
    with examples_for(loaded, processor, encoded, task, machine, store) as examples:
        curve.stored_features = body_rests(loaded) and type(examples["train"]) is not Examples
        trainer = StepTrainer(phase, loaded, model, processor, examples, task, plan, machine, folder, seed, curve)
        # Trainer gives every process the same dropout; each should draw its own.
        torch.manual_seed(seed + 1_000_003 * trainer.accelerator.process_index)
        trainer.train()
        curve.best_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise RecipeError(explain_divergence("weights after the last step are not finite"))
    if use_cache is not None:
        loaded.model.config.use_cache = use_cache  # Trainer switches it off, and the saved config would say so for good
    curve.seconds = time.perf_counter() - started
    curve.peak_memory_bytes = _peak_memory(machine)
    for counted in ("examples", "tokens", "padded_tokens"):
        total = torch.tensor(float(getattr(curve, counted)), dtype=torch.float64, device=trainer.args.device)
        setattr(curve, counted, int(_over_processes(trainer.accelerator, total, "sum")))
    return phase.finish(model).eval(), curve


@contextlib.contextmanager
def examples_for(
    loaded: LoadedModel, processor: Any, encoded: dict[str, Dataset], task: Task, machine: Machine, store: bool
) -> Iterator[dict[str, Examples]]:
    """Examples of train and validation; stored vectors with a stub for the body where nothing below the head moves."""
    collate = task.collator(processor)
    examples = {name: Examples(encoded[name], collate) for name in ("train", "validation")}
    if store and body_rests(loaded):
        loaded.model.to(machine.device)  # pyright: ignore
        stored = {name: store_features(loaded, each, task, machine) for name, each in examples.items()}
        if all(each is not None for each in stored.values()):
            with stored_body(loaded):
                yield stored  # pyright: ignore[reportReturnType]
            return
    yield examples


class StepTrainer(Trainer):
    """The plain Trainer, but for: what a step is, which modules are in training mode, how it is scored and saved."""

    def __init__(
        self,
        phase: Phase,
        loaded: LoadedModel,
        model: Any,
        processor: Any,
        examples: dict[str, Examples],
        task: Task,
        plan: EvaluationPlan,
        machine: Machine,
        folder: Path,
        seed: int,
        curve: TrainingCurve,
    ):
        self.phase, self.loaded, self.task, self.plan, self.machine, self.curve = phase, loaded, task, plan, machine, curve
        self.examples = examples
        set_seed(seed)
        super().__init__(
            model=model,
            args=phase.training.arguments(folder, seed, machine, plan.choose_by(task)),
            train_dataset=examples["train"],
            eval_dataset=examples["validation"],
            processing_class=processor,
            callbacks=list(phase.callbacks),
        )
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)
        self._resting = resting_modules(loaded, model)
        self._attention = attention_for_training(loaded, machine)
        # Recomputed activations would meet other random numbers, and a compiled graph would break at each dropout.
        training = phase.training
        self._own_dropout = machine.device == "cpu" and not training.activation_checkpointing and not training.torch_compile
        curve.dropout = "hf_sft" if self._own_dropout else "torch"

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        with built_by("`training.optim`", self.phase.training.optim, "`training.optim_args`"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with built_by("`training.lr_scheduler_type`", self.phase.training.lr_scheduler_type, "`training.lr_scheduler_kwargs`"):
            return super().create_scheduler(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        sampler = StepSampler(
            self.examples["train"].lengths,
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
        # The sampler already gives each process its own share, so accelerate is told that it is alone.
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One optimizer step's forward and backward passes; returns the mean loss per item, as Trainer averages it."""
        model.train()
        for module in self._resting:
            module.eval()
        micro_batches = inputs["micro_batches"]
        count = sum(self.task.num_items(batch) for batch, micro_batch in micro_batches if micro_batch.counts)
        items = _over_processes(self.accelerator, torch.tensor(float(count), device=self.args.device), "sum")
        total = torch.zeros((), device=self.args.device)
        with attending(self.loaded, self._attention), CpuDropout() if self._own_dropout else contextlib.nullcontext():
            for place, (batch, micro_batch) in enumerate(micro_batches):
                last = place == len(micro_batches) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    batch: Batch = send_to_device(batch, self.args.device)  # pyright: ignore[reportAssignmentType]
                    with self.compute_loss_context_manager():
                        loss = self.task.loss(model, batch)
                    # Gradients are averaged over processes, so each adds its share of the sum times their number.
                    loss = loss * (self.accelerator.num_processes * micro_batch.counts) / items
                    self.accelerator.backward(loss)
                    total += loss.detach()
                self._count(batch, micro_batch)
        self.curve.losses.append(_over_processes(self.accelerator, total, "mean"))
        if not math.isfinite(self.curve.losses[-1]):
            raise RecipeError(explain_divergence(f"the loss of step {len(self.curve.losses)} is {self.curve.losses[-1]}"))
        return total

    def _count(self, batch: dict[str, Any], micro_batch: Any) -> None:
        if micro_batch.counts:
            lengths = self.examples["train"].lengths[list(micro_batch.rows)]
            self.curve.examples += len(lengths)
            if not self.curve.stored_features:
                self.curve.tokens += int(lengths.sum())
                self.curve.padded_tokens += len(lengths) * int(lengths.max())

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Scores the validation split; on every process the same numbers."""
        examples = self.examples["validation"] if eval_dataset is None else eval_dataset
        output = run_model(self.accelerator.unwrap_model(self.model), examples, self.task, self.machine)
        known = np.asarray(examples.encoded.with_format("numpy")["labels"][:])
        values = measure(output, known, self.task, self.plan.names(self.task))
        self.curve.evaluations.append({"step": self.state.global_step, **values})
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """The outputs for examples, or for rows as the recipe's data has them, with or without labels."""
        if isinstance(test_dataset, Dataset):
            rows = test_dataset
            if "input_ids" not in rows.column_names:
                rows = encode_rows(rows, self.task, self._labels(), self.processing_class)
            test_dataset = Examples(rows, self.task.collator(self.processing_class))
        output = run_model(self.accelerator.unwrap_model(self.model), test_dataset, self.task, self.machine)
        if "labels" not in test_dataset.encoded.column_names:
            return PredictionOutput(output, None, {})
        known = np.asarray(test_dataset.encoded.with_format("numpy")["labels"][:])
        values = measure(output, known, self.task, self.plan.names(self.task))
        return PredictionOutput(output, known, {f"{metric_key_prefix}_{name}": value for name, value in values.items()})

    def _labels(self) -> Labels | None:
        regression = self.loaded.model.config.problem_type == REGRESSION
        return None if regression else Labels(tuple(class_names(self.loaded.model.config)))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model as any Trainer saves it, with config and tokenizer; in checkpoints, only what moves."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            save_model(model, self.loaded.model.config, self.processing_class, folder)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """What moves, as safetensors, from one process. No pickled arguments: upstream's hold the Hub token in clear."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        moving = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file({**moving, **_buffers(model)}, folder / MOVING)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / MOVING)
        unknown = self.accelerator.unwrap_model(self.model).load_state_dict(saved, strict=False).unexpected_keys
        if unknown:
            raise RuntimeError(f"the checkpoint {resume_from_checkpoint} holds parameters of another model: {unknown[:3]}")


def explain_divergence(found: str) -> str:
    """What to say of a training whose numbers are no numbers any more."""
    return (
        f"{found}: the training has diverged, and no model was saved or published.\n"
        "  Lower `training.learning_rate`, raise `training.warmup_steps`, or use fp32 (`training.bf16=false`); look at the\n"
        "  rows too: `hf-sft check` shows the first."
    )


def _over_processes(accelerator: Accelerator, value: Tensor, how: str) -> float:
    return float(accelerator.reduce(value, how))  # pyright: ignore[reportArgumentType]


def _as_mapping(micro_batches: list) -> dict[str, Any]:
    """Trainer wants a mapping; without a key `labels` it scales nothing."""
    return {"micro_batches": micro_batches}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict().keys()
    return {name: buffer.contiguous() for name, buffer in model.named_buffers() if name in persistent}


def _peak_memory(machine: Machine) -> int:
    if machine.device != "cpu":
        return int(torch.accelerator.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Progress(ProgressCallback):
    """The progress bar with the loss beside it, instead of a line for each log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")
