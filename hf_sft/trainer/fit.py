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
from hf_sft.data.examples import Examples
from hf_sft.errors import Diverged, SaveError
from hf_sft.frozen.features import body_rests, store_features, stored_body
from hf_sft.frozen.hidden_states import count_resting, passed_layers, store_states
from hf_sft.methods import Phase
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.models.unused import freeze_unused
from hf_sft.storage import checkpoint_files as checkpoints
from hf_sft.trainer.history import TrainingCurve
from hf_sft.trainer.resumable_trainer import fitting, load_weights, restore_curve
from hf_sft.trainer.signals import Interrupted
from hf_sft.trainer.speedups.lora_linear import as_one_operation
from hf_sft.trainer.speedups.used_embeddings import only_tokens_in_use
from hf_sft.trainer.step_trainer import Asked, Setting, StepTrainer, explain_divergence

GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Read error")
"""What torch says of a process that is no more there."""


def fit_phases(
    phases: Sequence[Phase], loaded: LoadedModel, examples: dict[str, Examples], asked: Asked, settings: Sequence[Setting]
) -> tuple[Any, list[TrainingCurve]]:
    """Train all phases, each from the model that the one before has finished; gives the last one's."""
    model, curves = loaded.model, []
    for place, (phase, setting) in enumerate(zip(phases, settings, strict=True)):
        if place:  # what is drawn is the same whether the phase before was trained now or earlier
            set_seed(setting.seed)
        model, curve = fit(phase, replace(loaded, model=model), examples, asked, setting)
        curves.append(curve)
    return model, curves


def fit(
    phase: Phase, loaded: LoadedModel, examples: dict[str, Examples], asked: Asked, setting: Setting
) -> tuple[Any, TrainingCurve]:
    """Train one phase on the `train` examples, scored on the `validation` ones; or go on with it from its checkpoints.

    Gives the finished model, in eval mode, and how it went. Raises `Diverged`, and `Interrupted` when it was asked to end.
    """
    model, use_cache = phase.prepare(loaded), getattr(loaded.model.config, "use_cache", None)
    freeze_unused(model, loaded.unused)
    sizes = [(count_weights(p), p.requires_grad) for p in model.parameters()]
    curve = TrainingCurve(phase.name, parameters=sum(n for n, _ in sizes), trainable=sum(n for n, moves in sizes if moves))
    begun = checkpoints.find_newest(setting.folder) if setting.resume else None
    if setting.resume:
        checkpoints.drop_after(setting.folder, begun)
    if begun is not None:
        say_where(begun, phase)
    if begun is not None and begun.name == checkpoints.FINISHED:
        with narrowed(loaded, model, phase, examples, setting):
            with fitting(begun):
                load_weights(model, checkpoints.read_weights(begun))
            restore_curve(curve, checkpoints.read_state(begun))
    else:
        model = _train(phase, loaded, model, examples, asked, setting, curve, begun)
    if use_cache is not None:
        loaded.model.config.use_cache = use_cache  # Trainer switches it off, and the saved config would say so for good
    return phase.finish(model).eval(), curve


def _train(
    phase: Phase,
    loaded: LoadedModel,
    model: Any,
    examples: dict[str, Examples],
    asked: Asked,
    setting: Setting,
    curve: TrainingCurve,
    begun: Path | None,
) -> Any:
    asked_for = ("train",) if phase.training.eval_strategy == "no" else ("train", "validation")
    learned = {name: examples[name] for name in asked_for}
    started = time.monotonic()
    with (
        stored_where_it_rests(loaded, model, learned, asked, setting, curve) as shown,
        narrowed(loaded, model, phase, examples, setting) as phase,
    ):
        trainer = StepTrainer(phase, loaded, model, {**examples, **shown}, asked, setting, curve)
        trainer.started(started)
        # Trainer gives every process the same dropout; each should draw its own.
        torch.manual_seed(setting.seed + 1_000_003 * trainer.accelerator.process_index)
        low_rank = contextlib.nullcontext() if phase.training.torch_compile else as_one_operation(model, setting.machine)
        with trainer.listening.after_steps(), others_alive(), low_rank:
            trainer.train(begun)
            trainer.gather_losses()
            curve.best_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
            model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            # Accelerate's mark (1.15, Accelerator.prepare_model): the next phase's model would be taken for prepared, and run
            # in float32 whatever the precision.
            model.__dict__.pop("_is_accelerate_prepared", None)
            if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
                raise Diverged(explain_divergence("weights after the last step are not finite", (), setting.folder))
            curve.seconds, curve.peak_memory_bytes = (
                trainer.seconds,
                max(curve.peak_memory_bytes, _peak_memory(setting.machine)),
            )
            trainer.add_up_counts()
            if setting.listening is not None:
                trainer.save_finished()
    if trainer.listening.heard:
        raise Interrupted(trainer.listening.heard)
    return model


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """What a process meets when another has died, in words."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in GONE):
            raise
        said = (
            f"another process of this run has ended, and process {PartialState().process_index} can't go on alone "
            f"({str(error).strip().splitlines()[0][:120]}).\n"
            "  Look at what that one said.  The same command with --resume goes on from the last checkpoint."
        )
        if not PartialState().is_main_process:  # which may be the one that has ended
            print(said, file=sys.stderr, flush=True)
        raise SaveError(said) from None


def say_where(begun: Path, phase: Phase) -> None:
    """From where a phase goes on, for the person waiting."""
    if PartialState().is_main_process:
        done = begun.name == checkpoints.FINISHED
        what = "is finished" if done else f"goes on after step {checkpoints.step_of(begun)}"
        print(f"phase {phase.name} {what}.", file=sys.stderr)


@contextlib.contextmanager
def stored_where_it_rests(
    loaded: LoadedModel, model: Any, examples: dict[str, Examples], asked: Asked, setting: Setting, curve: TrainingCurve
) -> Iterator[dict[str, Examples]]:
    """Stored vectors, with a stub for the body, where nothing below the head moves and it reads one vector; stored states,
    with stubs for the lower layers, where only they rest; else the examples as they are."""
    rests = setting.store and body_rests(loaded) and loaded.body is not loaded.model
    count = count_resting(loaded) if setting.store and model is loaded.model else 0
    if rests or count:
        nn.Module.to(loaded.model, setting.machine.device)
    if rests:
        stored = {name: store_features(loaded, each, asked.items, setting.machine) for name, each in examples.items()}
        shown = {name: each for name, each in stored.items() if each is not None}
        if len(shown) == len(examples):
            curve.stored_features = True
            with stored_body(loaded):
                yield {**shown}
            return
    if count and (made := store_states(loaded, count, examples, asked.items, setting.machine)):
        curve.stored_layers = count
        with passed_layers(loaded, count, made[1]):
            yield {**made[0]}
        return
    yield examples


def narrowed(
    loaded: LoadedModel, model: Any, phase: Phase, examples: dict[str, Examples], setting: Setting
) -> contextlib.AbstractContextManager[Phase]:
    """Embeddings of tokens that no row has left out, where that changes nothing."""
    if not setting.narrow or model is not loaded.model or body_rests(loaded):
        return contextlib.nullcontext(phase)
    return only_tokens_in_use(loaded, phase, examples, setting.processor)


def count_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds; several are in one number where they are quantised."""
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
