"""One phase of training, from the model as it was loaded to the model as it is saved."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from hf_sft.config.machine import Machine
from hf_sft.errors import Diverged, SaveError, first_line
from hf_sft.methods import Phase
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.models.unused import freeze_unused
from hf_sft.storage import checkpoint_files as checkpoints
from hf_sft.trainer.fit_config import FitConfig, FitState, Speedup
from hf_sft.trainer.history import TrainingCurve
from hf_sft.trainer.restore import fitting, load_weights, restore_curve
from hf_sft.trainer.signals import Interrupted
from hf_sft.trainer.speedups.cpu_attention import cpu_attention
from hf_sft.trainer.speedups.cpu_dropout import cpu_dropout
from hf_sft.trainer.speedups.lora_linear import lora_linear
from hf_sft.trainer.speedups.stored import stored_features, stored_states
from hf_sft.trainer.step_trainer import StepTrainer, explain_divergence

STORING: tuple[Speedup, ...] = (stored_features, stored_states)
"""Speed-ups that run frozen modules once over all rows, before the first step."""
IN_STEPS: tuple[Speedup, ...] = (lora_linear, cpu_dropout, cpu_attention)
SPEEDUPS = (*STORING, *IN_STEPS)
"""All speed-ups, in the order in which their contexts are entered."""
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Read error")
"""Parts of torch's messages when another process is gone."""


def fit_phases(phases: Sequence[Phase], loaded: LoadedModel, configs: Sequence[FitConfig]) -> tuple[Any, list[TrainingCurve]]:
    """Train all phases, each on the model that the last one finished. Returns the last model."""
    model, curves = loaded.model, []
    for place, (phase, config) in enumerate(zip(phases, configs, strict=True)):
        if place:  # what is drawn is the same whether the phase before was trained now or earlier
            set_seed(config.seed)
        model, curve = fit(phase, replace(loaded, model=model), config)
        curves.append(curve)
    return model, curves


def fit(phase: Phase, loaded: LoadedModel, config: FitConfig) -> tuple[Any, TrainingCurve]:
    """Train one phase on the `train` examples, scored on the `validation` ones; or continue from its checkpoints.

    Returns the finished model, in eval mode, and its training curve. Raises `Diverged`, and `Interrupted` when a signal came.
    """
    model, use_cache = phase.prepare(loaded), getattr(loaded.model.config, "use_cache", None)
    freeze_unused(model, loaded.unused)
    sizes = [(count_weights(p), p.requires_grad) for p in model.parameters()]
    curve = TrainingCurve(phase.name, parameters=sum(n for n, _ in sizes), trainable=sum(n for n, moves in sizes if moves))
    begun = checkpoints.find_newest(config.folder) if config.resume else None
    if config.resume:
        checkpoints.drop_after(config.folder, begun)
    if begun is not None:
        say_where(begun, phase)
    if begun is not None and begun.name == checkpoints.FINISHED:
        with fitting(begun):
            load_weights(model, checkpoints.read_weights(begun))
        restore_curve(curve, checkpoints.read_state(begun))
    else:
        model = _train(FitState(phase, loaded, model, config.examples, curve), config, begun)
    if use_cache is not None:
        loaded.model.config.use_cache = use_cache  # Trainer switches it off, and the saved config would say so for good
    return phase.finish(model).eval(), curve


def _train(state: FitState, config: FitConfig, begun: Path | None) -> Any:
    started, curve = time.monotonic(), state.curve
    with contextlib.ExitStack() as active:
        for speedup in SPEEDUPS if config.speedups is None else config.speedups:
            state = active.enter_context(speedup(state, config))
        trainer = StepTrainer(state, config)
        trainer.started(started)
        # Trainer gives every process the same dropout; each should draw its own.
        torch.manual_seed(config.seed + 1_000_003 * trainer.accelerator.process_index)
        with trainer.signal_handler.after_steps(), others_alive():
            trainer.train(begun)
            trainer.gather_losses()
            curve.best_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
            model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            # Accelerate's mark (1.15, Accelerator.prepare_model): the next phase's model would be taken for prepared, and run
            # in float32 whatever the precision.
            model.__dict__.pop("_is_accelerate_prepared", None)
            if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
                raise Diverged(explain_divergence("weights after the last step are not finite", (), config.folder))
            curve.seconds = trainer.seconds
            curve.peak_memory_bytes = max(curve.peak_memory_bytes, _peak_memory(config.machine))
            trainer.add_up_counts()
            if config.signal_handler is not None:
                trainer.save_finished()
    if trainer.signal_handler.signal_number:
        raise Interrupted(trainer.signal_handler.signal_number)
    return model


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """Turn torch's error after the death of another process into `SaveError`."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in GONE):
            raise
        message = (
            f"another process of this run has ended, and process {PartialState().process_index} can't go on alone "
            f"({first_line(error)[:120]}).\n"
            "  Look at what that one said.  The same command with --resume goes on from the last checkpoint."
        )
        if not PartialState().is_main_process:  # which may be the one that has ended
            print(message, file=sys.stderr, flush=True)
        raise SaveError(message) from None


def say_where(begun: Path, phase: Phase) -> None:
    """Print the step that a phase resumes from."""
    if PartialState().is_main_process:
        done = begun.name == checkpoints.FINISHED
        what = "is finished" if done else f"goes on after step {checkpoints.step_of(begun)}"
        print(f"phase {phase.name} {what}.", file=sys.stderr)


def count_weights(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; quantised ones hold several in one element."""
    quantised: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantised is None else quantised.shape.numel()


def _peak_memory(machine: Machine) -> int:
    if machine.device != "cpu":
        return int(torch.accelerator.max_memory_allocated())
    try:
        import resource
    except ImportError:  # not a Unix
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
