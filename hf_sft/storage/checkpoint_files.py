"""Checkpoints for resuming: folders that are written atomically and hold no pickled code.

Below a run's `checkpoints/`: `run.json` says what is trained; a folder for each phase has one for each checkpoint,
`checkpoint-STEP`, and, when the phase is done, `finished` in their place.
"""

import json
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_sft.storage.atomic_folder import atomic_folder, disk_errors, is_intact

MOVING, TENSORS, STATE = "model.safetensors", "state.safetensors", "state.json"
"""In a checkpoint: the parameters that move, the rest being the starting checkpoint's; all other tensors; all else."""
PREFIX, FINISHED = "checkpoint-", "finished"


def name_of(step: int) -> str:
    """The folder of the checkpoint after a step; transformers' own name."""
    return f"{PREFIX}{step}"


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.name.rpartition("-")[2])


def write(path: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """One checkpoint, when the disk has all of it. `state` is of what JSON knows, tuples, arrays and tensors.

    Raises `OSError`; then nothing is there.
    """
    with disk_errors(), atomic_folder(path, synced=True) as aside:
        tensors: dict[str, Tensor] = {}
        (aside / STATE).write_text(json.dumps(pack(state, tensors)), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, aside / MOVING)
        save_file(tensors, aside / TENSORS)


def read_weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / MOVING)


def read_state(path: Path) -> dict[str, Any]:
    """What was given to `write`, with tensors on the CPU."""
    return unpack(json.loads((path / STATE).read_text(encoding="utf-8")), load_file(path / TENSORS))


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it; its tensors go to `tensors`. Raises `TypeError` for what would need code to be read again."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": pack(torch.from_numpy(value.copy()), tensors)}
    if isinstance(value, np.generic):
        return pack(value.item(), tensors)
    if isinstance(value, tuple):
        return {"tuple": [pack(each, tensors) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, tensors), pack(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list):
        return [pack(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} can't be kept in a checkpoint: {value!r}")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that was packed."""
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "array":
        return unpack(held, tensors).numpy()
    if kind == "tuple":
        return tuple(unpack(each, tensors) for each in held)
    return {unpack(key, tensors): unpack(each, tensors) for key, each in held}


def find_newest(folder: Path) -> Path | None:
    """The newest checkpoint of a phase from which it can go on, the same on every process: one that is whole, and whose best
    is. What is damaged is passed over, aloud."""
    found = _find_newest(folder) if PartialState().is_main_process else None
    return broadcast_object_list([found])[0]


def _find_newest(folder: Path) -> Path | None:
    for path in [folder / FINISHED, *reversed(list_steps(folder))]:
        if not path.is_dir():
            continue
        damaged = None if is_intact(path) else path
        best = None if damaged else _find_best(path)
        if best not in (None, path) and not is_intact(best):
            damaged = best
        if not damaged:
            return path
        print(f"`{damaged}` is damaged: going back behind it.", file=sys.stderr)
    return None


def _find_best(path: Path) -> Path | None:
    """The checkpoint with the best weights so far, as a checkpoint says; its tensors are not read."""
    items = json.loads((path / STATE).read_text(encoding="utf-8"))["dict"]
    step = next((value for name, value in items if name == "best_step"), None)
    return None if step is None else path.parent / name_of(step)


def list_steps(folder: Path) -> list[Path]:
    """The checkpoints of a phase in their order."""
    return sorted((path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()), key=step_of)


def keep_only(folder: Path, newest: int, best: int | None) -> None:
    """Remove all but so many of the newest checkpoints, and the best; also what was begun and never whole."""
    old = [path for path in list_steps(folder)[: -newest or None] if step_of(path) != best]
    for path in (*old, *folder.glob(f".{PREFIX}*"), *folder.glob(f".{FINISHED}-*")):
        shutil.rmtree(path, ignore_errors=True)


def drop_after(folder: Path, begun: Path | None) -> None:
    """Remove what a phase has after the checkpoint from which it goes on: it is damaged, and will be written again."""
    if PartialState().is_main_process and (begun is None or begun.name != FINISHED):
        last = -1 if begun is None else step_of(begun)
        for later in (folder / FINISHED, *(path for path in list_steps(folder) if step_of(path) > last)):
            shutil.rmtree(later, ignore_errors=True)
    PartialState().wait_for_everyone()


def capture_draws(device: str) -> list[dict[str, Any]]:
    """The state of every random generator, of every process in order."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if device != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return gather_object([state])


def restore_draws(states: Sequence[dict[str, Any]], device: str) -> bool:
    """Set this process's generators to what they were; False where there were fewer processes, and nothing is set."""
    process = PartialState().process_index
    if process >= len(states):
        return False
    state = states[process]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
    return True


def differences(then: Any, now: Any, where: str = "") -> list[str]:
    """Where two values of JSON differ: `training.learning_rate: 0.001, and now 0.002`."""
    if isinstance(then, dict) and isinstance(now, dict):
        names: Iterable[str] = dict.fromkeys((*then, *now))
        inside = [differences(then.get(name), now.get(name), f"{where}.{name}" if where else name) for name in names]
        return [each for found in inside for each in found]
    return [] if then == now else [f"{where}: {str(then)[:80]}, and now {str(now)[:80]}"]
