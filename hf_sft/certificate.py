"""What was saved answers like what was trained: Hugging Face's own libraries load it, in a process that knows nothing else.

A run folder keeps some rows of test, the probes, and the logits that the trained model had for them, so that whatever was
saved or published can be asked the same again.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, GenerationConfig

from hf_sft.batching import to_device
from hf_sft.block import load_kind
from hf_sft.checkpoint import Checkpoint, find_checkpoint, source_of
from hf_sft.encoding import read_examples
from hf_sft.errors import CheckpointError
from hf_sft.models import GENERATION, quantisation
from hf_sft.tasks import Task
from hf_sft.whole import open_to_readers

FOLDER = "probes"
"""Below a run folder."""
PROBES = 32
"""Rows, at most; of a row that has several examples the first is asked."""
NUMBERS = 1024
"""Logits that are kept of a probe, at most, from all over its answer."""
WRITTEN = 16
"""Tokens of an answer that is written, at most."""
BOUND = 1e-4
"""The largest difference that still is rounding, as a share of the largest logit."""
FRESH = """
from hf_sft.imports import quick_imports
with quick_imports():
    from hf_sft.certificate import compare_when_asked
compare_when_asked()
"""
LAST = 19
"""The priority of a process that takes the cores that nobody else wants."""
OF_A_LAUNCH = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What a launcher tells a process, by which a child of it would take itself for one of several."""


def write_probes(folder: Path, model: Any, rows: Dataset, task: Task, processor: Any, checkpoint: Checkpoint) -> None:
    """Into a run folder: rows for the task, and what the trained model says to them."""
    below, columns = folder / FOLDER, [n for n in (*task.input_columns(), *task.optional_columns()) if n in rows.column_names]
    places = np.unique(np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int))
    probes = rows.select_columns(columns).select(places)
    probes.save_to_disk(str(below / "rows"))
    asked: dict[str, Any] = {"task": task.model_dump(mode="json"), "model": checkpoint.model_dump(mode="json")}
    if (prompt := task.written_prompt(probes.select([0]), processor)) is not None:
        asked |= {"prompt": prompt, "written": write_answer(model, prompt, processor)}
    (below / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    save_file(answer_probes(model, probes, task, processor), below / "logits.safetensors")
    open_to_readers(below)


def answer_probes(model: Any, probes: Dataset, task: Task, processor: Any) -> dict[str, np.ndarray]:
    """Of each probe by its number its logits, asked alone and in float32; shape (NUMBERS,) at most."""
    examples, said = read_examples(probes, task, None, processor), {}
    for row in range(len(probes)):
        inputs = task.model_inputs(examples.collate((examples.starts[row],)), processor)
        with torch.no_grad():
            output = model(**to_device(inputs, model.device))
        named = [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]
        logits = torch.cat([each.flatten() for each in named]).float().cpu().numpy()
        said[str(row)] = logits[np.linspace(0, len(logits) - 1, min(NUMBERS, len(logits))).astype(int)]
    return said


def write_answer(model: Any, prompt: list[int], processor: Any) -> list[int]:
    """The tokens that plain `generate` writes behind a prompt, by the model's own settings, and no token drawn."""
    given = torch.tensor([prompt], device=model.device)
    pad = processor.pad_token_id if processor.pad_token_id is not None else 0
    told: dict[str, Any] = {"attention_mask": torch.ones_like(given), "pad_token_id": pad, "do_sample": False}
    with torch.no_grad():
        (written,) = model.eval().generate(input_ids=given, max_new_tokens=WRITTEN, **told).tolist()
    return written if model.config.is_encoder_decoder else written[len(prompt) :]


def begin(saved: Path, run: Path, device: str, write: Callable[[], None] = lambda: None) -> Callable[[], dict[str, Any]]:
    """Have a fresh process answer a run's probes by what was saved, and go on; what is given back waits for it.

    The probes are written meanwhile, by `write`, where they are not there yet. What is given back says of how many `rows` the
    logits were compared, their `largest_difference`, its `bound`, and whether it is `within`. It raises `CheckpointError`
    where the saved model can't be loaded.
    """
    answer = fresh_process(write, str(saved), str(run), device)

    def end() -> dict[str, Any]:
        try:
            facts = answer()
        except ValueError as error:
            raise CheckpointError(f"what was saved in `{saved}` can't be loaded again: {error}") from None
        near = facts["largest_difference"] is not None and facts["largest_difference"] <= facts["bound"]
        return {**facts, "within": near and facts.get("same_text", True)}

    return end


def require(facts: dict[str, Any], saved: Path | str) -> None:
    """Refuse a model that does not answer as it did when it was trained. Raises `CheckpointError`."""
    if not facts.get("same_text", True):
        raise CheckpointError(
            f"`{saved}` does not write as the model did that was trained, by plain `generate`: its generation_config.json or\n"
            "  its processor has changed since, or was not saved: train again."
        )
    if not facts["within"]:
        apart = "not finite" if facts["largest_difference"] is None else f"up to {facts['largest_difference']:.2g} apart"
        raise CheckpointError(
            f"`{saved}` does not answer as the model did that was trained: on {facts['rows']} rows of test its logits are "
            f"{apart};\n  rounding explains {facts['bound']:.2g}.  Its weights or its processor have changed since, or were "
            "not saved whole: train again."
        )


def fresh_process(write: Callable[[], None], *arguments: str) -> Callable[[], dict[str, Any]]:
    """What `compare` says in a process of its own, which gets ready while `write` runs, and then compares; what is given back
    waits for it. That raises `ValueError` with its last words."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_LAUNCH) and name not in RANKS}
    begun = subprocess.Popen(
        [sys.executable, "-c", FRESH, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**env, "HF_HUB_OFFLINE": "1"},
        text=True,
    )
    if hasattr(os, "setpriority"):  # two that share their cores evenly wait for each other's threads: four times the time
        os.setpriority(os.PRIO_PROCESS, begun.pid, LAST)

    write()
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and `end` says why
        assert begun.stdin is not None
        begun.stdin.write("\n")
        begun.stdin.flush()

    def end() -> dict[str, Any]:
        out, err = begun.communicate()
        if begun.returncode:
            raise ValueError((err.strip().splitlines() or [f"exit status {begun.returncode}"])[-1])
        return json.loads(out.splitlines()[-1])

    return end


def compare(saved: str, run: str, device: str) -> dict[str, Any]:
    """Ask what was saved, loaded by plain transformers, or PEFT, as its card says to."""
    below = Path(run) / FOLDER
    asked = json.loads((below / "asked.json").read_text(encoding="utf-8"))
    task: Any = load_kind("tasks", asked["task"]["type"]).model_validate(asked["task"])
    model, processor = _load_plainly(Path(saved), task, Checkpoint.model_validate(asked["model"]))
    rows: Any = load_from_disk(str(below / "rows"))
    now, then = answer_probes(model.eval().to(device), rows, task, processor), load_file(below / "logits.safetensors")
    fit = all(now[row].shape == then[row].shape for row in then)
    apart = max(float(np.abs(now[row] - then[row]).max()) for row in then) if fit else float("inf")
    scale = max(float(np.abs(logits).max()) for logits in then.values())
    facts = {"rows": len(rows), "largest_difference": apart if np.isfinite(apart) else None, "bound": BOUND * scale}
    if "prompt" in asked:
        facts["same_text"] = write_answer(model, asked["prompt"], processor) == asked["written"]
    return facts


def _load_plainly(saved: Path, task: Task, checkpoint: Checkpoint) -> tuple[Any, Any]:
    trust, exact = {"trust_remote_code": checkpoint.trust_remote_code}, {"dtype": torch.float32}
    processor = task.auto_processor.from_pretrained(saved, **trust)
    if not (saved / "adapter_config.json").is_file():
        return task.auto_model.from_pretrained(saved, **trust, **exact), processor
    config = AutoConfig.from_pretrained(saved, **trust)
    told = {**source_of(checkpoint), **exact, **quantisation(checkpoint, task, config)}
    if (saved / GENERATION).is_file():
        told["generation_config"] = GenerationConfig.from_pretrained(saved)
    base = task.auto_model.from_pretrained(find_checkpoint(checkpoint), config=config, **told)
    return PeftModel.from_pretrained(base, saved), processor


def compare_when_asked() -> None:
    """What a fresh process does, with `compare`'s arguments on its command line: nothing, where the other has ended."""
    if sys.stdin.readline():
        print(json.dumps(compare(*sys.argv[1:])))
