"""Checkpoints on the Hub while a training runs, which neither waits for that nor fails of it."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import tqdm as hub_tqdm
from transformers import TrainerCallback

from hf_sft.hub.publish import make_room
from hf_sft.hub.retry import PATIENCE, explained, with_retries
from hf_sft.methods import Phase
from hf_sft.redaction import hide_secrets
from hf_sft.storage.checkpoint_files import name_of
from hf_sft.storage.run_folder import SENDING

BRANCH = "checkpoints"


@contextlib.contextmanager
def sent_meanwhile(
    repo_id: str | None, private: bool, phases: Sequence[Phase], folders: Sequence[Path]
) -> Iterator[Sequence[Phase]]:
    """Phases that send their checkpoints, each from its folder, to a repository's branch while they train; as they are
    without a repository.

    The training waits for none of it, and fails of none of it; at the end the last checkpoint is waited for, a minute at most.
    """
    if not repo_id:
        yield phases
        return
    sender = CheckpointSender(repo_id, private)
    try:
        sends = [partial(_OnSave, sender, phase.name, folder) for phase, folder in zip(phases, folders, strict=True)]
        yield [replace(phase, callbacks=(*phase.callbacks, send)) for phase, send in zip(phases, sends, strict=True)]
    finally:
        sender.finish()


class CheckpointSender:
    """One checkpoint at a time, in a thread of its own; of those that are written meanwhile only the newest is sent."""

    def __init__(self, repo_id: str, private: bool):
        self.repo_id, self.private = repo_id, private
        self._newest: tuple[str, Path] | None = None
        self._sending: Future[None] | None = None
        self._busy, self._lock, self._worker = False, Lock(), ThreadPoolExecutor(1)
        self._failed: BaseException | None = None
        _list_bars_apart()

    def take(self, title: str, checkpoint: Path) -> None:
        """Keep a checkpoint, linked so that it outlives its folder, and have it sent when its turn comes."""
        try:
            copy = Path(tempfile.mkdtemp(prefix=SENDING, dir=checkpoint.parent.parent)) / checkpoint.name
            shutil.copytree(checkpoint, copy, copy_function=os.link)
        except OSError as error:  # a disk that is full, or knows no links: the training goes on
            self._failed = error
            return
        with self._lock:
            if self._newest:
                shutil.rmtree(self._newest[1].parent, ignore_errors=True)
            self._newest = (title, copy)
            if not self._busy:
                self._busy, self._sending = True, self._worker.submit(self._send)

    def finish(self) -> None:
        """Wait for what is on its way, a minute at most, and say what did not arrive."""
        if self._sending is not None:
            wait([self._sending], PATIENCE)
        self._worker.shutdown(wait=False, cancel_futures=True)
        if self._failed is not None:
            print(f"checkpoints did not all reach `{self.repo_id}`: {hide_secrets(str(self._failed))}", file=sys.stderr)

    def _send(self) -> None:
        api = HfApi()
        while True:
            with self._lock:
                if self._newest is None:
                    self._busy = False
                    return
                (title, copy), self._newest = self._newest, None
            try:
                with explained(self.repo_id):
                    make_room(api, self.repo_id, self.private, BRANCH)
                    files = [(path.relative_to(copy).as_posix(), path) for path in copy.rglob("*") if path.is_file()]
                    send = partial(api.create_commit, self.repo_id, commit_message=title, revision=BRANCH)
                    with_retries(lambda: send(operations=[CommitOperationAdd(name, path) for name, path in files]))  # noqa: B023
                self._failed = None
            except Exception as error:  # any error: the training goes on, and the error is shown at the end
                self._failed = error
            finally:
                shutil.rmtree(copy.parent, ignore_errors=True)


def _list_bars_apart() -> None:
    """Give the Hub's progress bars a list of their own.

    tqdm reads its list of bars without a lock when it makes one that is not shown, and fails if another thread adds or removes
    a bar meanwhile (tqdm #481, 4.67): the trainer's would, while this uploads.
    """
    bars: Any = hub_tqdm
    if "_instances" not in vars(bars):
        bars._instances = WeakSet()


class _OnSave(TrainerCallback):
    def __init__(self, sender: CheckpointSender, phase: str, folder: Path):
        self.sender, self.phase, self.folder = sender, phase, folder

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = self.folder / name_of(state.global_step)
            self.sender.take(f"step {state.global_step} of phase {self.phase}", folder)
