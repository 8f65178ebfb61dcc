"""What was saved answers like what was trained: Hugging Face's own libraries load it, in a process that knows nothing else.

A run folder keeps some rows of test, the probes, and the logits that the trained model had for them, so that whatever was
saved or published can be checked again.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, GenerationConfig

from hf_sft.block import load_kind
from hf_sft.data.encoding import read_examples
from hf_sft.data.examples import to_device
from hf_sft.errors import CheckpointError
from hf_sft.models.checkpoint import Checkpoint, find_checkpoint, source_of
from hf_sft.models.loading import GENERATION, is_adapter, quantisation
from hf_sft.storage.atomic_folder import open_to_readers
from hf_sft.storage.foreign_code import HOW
from hf_sft.tasks import Task

FOLDER, ASKED, LOGITS = "probes", "asked.json", "logits.safetensors"
"""Below a run folder, and in it."""
PROBES = 32
"""Number of rows, at most; of a row with several examples the first is used."""
NUMBERS = 1024
"""Number of logits stored for a probe, at most, evenly spread over its answer."""
WRITTEN = 16
"""Tokens of an answer that is written, at most."""
BOUND = 1e-4
"""The largest difference that still is rounding, as a share of the largest logit."""
FRESH = """
import gc, json, sys
gc.disable()  # as long as it imports
sys.path += [path for path in json.loads(sys.argv.pop()) if path not in sys.path]
from hf_sft.models.reload_check import compare_on_request
gc.freeze()
gc.enable()
compare_on_request()
"""
"""Run with -P, so that nothing is imported from the current folder; what else its parent could import comes last."""
SILENT, LIMIT = 10, 600
"""Seconds of waiting for that process after which a line says so, and after which it is given up."""
OF_A_LAUNCH = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What a launcher tells a process, by which a child of it would take itself for one of several."""


def write_probes(folder: Path, model: Any, rows: Dataset, task: Task, processor: Any, checkpoint: Checkpoint) -> None:
    """Into a run folder: rows for the task, and what the trained model says to them."""
    below, columns = folder / FOLDER, [n for n in (*task.input_columns(), *task.optional_columns()) if n in rows.column_names]
    places = np.unique(np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int))
    probes = rows.select_columns(columns).select(places)
    probes.save_to_disk(str(below / "rows"))
    request: dict[str, Any] = {"task": task.model_dump(mode="json"), "model": checkpoint.model_dump(mode="json")}
    if (prompt := task.written_prompt(probes.select([0]), processor)) is not None:
        request |= {"prompt": prompt, "written": write_answer(model, prompt, processor)}
    (below / ASKED).write_text(json.dumps(request), encoding="utf-8")
    save_file(answer_probes(model, probes, task, processor), below / LOGITS)
    open_to_readers(below)


def answer_probes(
    model: Any, probes: Dataset, task: Task, processor: Any, before_each: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """The logits of each probe, by its number: one probe per forward pass, float32, shape (NUMBERS,) at most."""
    examples, answers = read_examples(probes, task, None, processor), {}
    for row in range(len(probes)):
        before_each()
        inputs = task.model_inputs(examples.collate((examples.starts[row],)), processor)
        with torch.no_grad():
            output = model(**to_device(inputs, model.device))
        named = [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]
        logits = torch.cat([each.flatten() for each in named]).float().cpu().numpy()
        answers[str(row)] = logits[np.linspace(0, len(logits) - 1, min(NUMBERS, len(logits))).astype(int)]
    return answers


def write_answer(model: Any, prompt: list[int], processor: Any) -> list[int]:
    """The tokens that plain `generate` writes behind a prompt, by the model's own settings, and no token drawn."""
    given = torch.tensor([prompt], device=model.device)
    pad = processor.pad_token_id if processor.pad_token_id is not None else 0
    options: dict[str, Any] = {"attention_mask": torch.ones_like(given), "pad_token_id": pad, "do_sample": False}
    with torch.no_grad():
        (written,) = model.eval().generate(input_ids=given, max_new_tokens=WRITTEN, **options).tolist()
    return written if model.config.is_encoder_decoder else written[len(prompt) :]


def start(
    saved: Path, run: Path, device: str, write: Callable[[], None] = lambda: None, trusted: bool = False
) -> Callable[[], dict[str, Any]]:
    """Have a fresh process answer a run's probes by what was saved, and go on; what is given back waits for it.

    The probes are written meanwhile, by `write`, where they are not there yet. Code that they or the model name is run only if
    the caller has `trusted` it. What is given back says of how many `rows` the logits were compared, their
    `largest_difference`, its `bound`, and whether it is `within`; where that took too long, why it is `not_done`. It raises
    `CheckpointError` where the saved model can't be loaded.
    """
    answer = fresh_process(write, str(saved), str(run), device, trusted)

    def end() -> dict[str, Any]:
        try:
            facts = answer()
        except TimeoutError as error:
            return {"rows": 0, "largest_difference": None, "bound": None, "within": None, "not_done": str(error)}
        except ValueError as error:
            how = f"\n  {HOW}" if "trust_remote_code" in str(error) else ""
            raise CheckpointError(f"what was saved in `{saved}` can't be loaded again: {error}{how}") from None
        near = facts["largest_difference"] is not None and facts["largest_difference"] <= facts["bound"]
        return {**facts, "within": near and facts.get("same_text", True)}

    return end


def require(facts: dict[str, Any], saved: Path | str) -> None:
    """Refuse a model that does not answer as it did when it was trained. Raises `CheckpointError`."""
    if "not_done" in facts:
        raise CheckpointError(
            f"`{saved}` could not be loaded again and compared with the trained model: {facts['not_done']}.\n"
            f"  Do it when the machine is less busy: hf-sft certify {shlex.quote(str(saved))}"
        )
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


def fresh_process(write: Callable[[], None], saved: str, run: str, device: str, trusted: bool) -> Callable[[], dict[str, Any]]:
    """What `compare` says in a process of its own, which gets ready while `write` runs, and then compares, with one thread as
    long as this process works; what is given back waits for it.

    That raises `ValueError` with its last words, and `TimeoutError` where it takes too long or was killed.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_LAUNCH) and name not in RANKS}
    here = _current_folder()
    begun = subprocess.Popen(
        [sys.executable, "-P", "-c", FRESH, json.dumps([saved, run, device, trusted]), json.dumps(_paths(here, trusted))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**env, "HF_HUB_OFFLINE": "1"},
        cwd=here or tempfile.gettempdir(),
        text=True,
    )
    write()
    _send(begun, "compare")

    def end() -> dict[str, Any]:
        _send(begun, str(torch.get_num_threads()))
        out, err = _wait(begun)
        if begun.returncode < 0:
            raise TimeoutError(f"its process was killed by signal {-begun.returncode}")
        if begun.returncode:
            raise ValueError((err.strip().splitlines() or [f"exit status {begun.returncode}"])[-1])
        return json.loads(out.splitlines()[-1])

    return end


def _current_folder() -> Path | None:
    """None where it was removed; libraries can't be imported there."""
    with contextlib.suppress(OSError):
        return Path.cwd()
    return None


def _paths(here: Path | None, trusted: bool) -> list[str]:
    """Where this process imports from; not the current folder, unless hf_sft lies there, or the caller trusts what does."""
    if here is None:
        return [path for path in sys.path if os.path.isabs(path)]
    found = [os.path.normpath(here / path) for path in sys.path]
    wanted = trusted or here == Path(__file__).parents[2]
    return [path for path in found if wanted or path != str(here)]


def _send(begun: subprocess.Popen[str], line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its exit status says why
        assert begun.stdin is not None
        begun.stdin.write(f"{line}\n")
        begun.stdin.flush()


def _wait(begun: subprocess.Popen[str]) -> tuple[str, str]:
    """What the process has written, when it has ended. Raises `TimeoutError`."""
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return begun.communicate(timeout=SILENT)
        print("waiting for the saved model to be loaded again by a process of its own, and compared …", file=sys.stderr)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return begun.communicate(timeout=LIMIT)
        raise TimeoutError(f"that took more than {LIMIT} s")
    finally:
        if begun.poll() is None:
            begun.kill()
            begun.wait()
        for pipe in (begun.stdin, begun.stdout, begun.stderr):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


def compare(
    saved: str, run: str, device: str, trusted: bool, before_each: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Ask what was saved, loaded by plain transformers, or PEFT, as its card says to."""
    below = Path(run) / FOLDER
    request = json.loads((below / ASKED).read_text(encoding="utf-8"))
    task: Any = load_kind("tasks", request["task"]["type"], trusted).model_validate(request["task"])
    checkpoint = Checkpoint.model_validate(request["model"])  # of the run folder, which may be somebody else's
    checkpoint = checkpoint.model_copy(update={"trust_remote_code": checkpoint.trust_remote_code and trusted})
    model, processor = _load_plainly(Path(saved), task, checkpoint)
    rows: Any = load_from_disk(str(below / "rows"))
    now, then = answer_probes(model.eval().to(device), rows, task, processor, before_each), load_file(below / LOGITS)
    fit = all(now[row].shape == then[row].shape for row in then)
    apart = max(float(np.abs(now[row] - then[row]).max()) for row in then) if fit else float("inf")
    scale = max(float(np.abs(logits).max()) for logits in then.values())
    facts = {"rows": len(rows), "largest_difference": apart if np.isfinite(apart) else None, "bound": BOUND * scale}
    if "prompt" in request:
        facts["same_text"] = write_answer(model, request["prompt"], processor) == request["written"]
    return facts


def _load_plainly(saved: Path, task: Task, checkpoint: Checkpoint) -> tuple[Any, Any]:
    trust, exact = {"trust_remote_code": checkpoint.trust_remote_code}, {"dtype": torch.float32}
    processor = task.auto_processor.from_pretrained(saved, **trust)
    if not is_adapter(saved):
        return task.auto_model.from_pretrained(saved, **trust, **exact), processor
    config = AutoConfig.from_pretrained(saved, **trust)
    options = {**source_of(checkpoint), **exact, **quantisation(checkpoint, task, config)}
    if (saved / GENERATION).is_file():
        options["generation_config"] = GenerationConfig.from_pretrained(saved)
    base = task.auto_model.from_pretrained(find_checkpoint(checkpoint), config=config, **options)
    return PeftModel.from_pretrained(base, saved), processor


def compare_on_request() -> None:
    """What a fresh process does, with `compare`'s arguments on its command line: nothing, where the other has ended.

    A second line is the number of threads that it may use, since the other only waits.
    """
    torch.set_num_threads(1)
    if not sys.stdin.readline():
        return
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(sys.stdin), daemon=True).start()

    def before_each() -> None:
        if lines:
            torch.set_num_threads(int(lines.pop()))

    print(json.dumps(compare(*json.loads(sys.argv[1]), before_each=before_each)))
