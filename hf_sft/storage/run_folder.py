"""A run folder: in which state it is, which process holds it, and which of its files the run wrote.

A folder is finished when its report.json can be read, and unfinished when `checkpoints/run.json` can. Nothing that a run did
not write is ever removed.
"""

import contextlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_sft.errors import RecipeError
from hf_sft.storage.atomic_folder import ASIDE, hash_file, placed, write_file
from hf_sft.storage.checkpoint_files import FINISHED, PREFIX, list_steps
from hf_sft.storage.strict_json import dump_json

REPORT, RECIPE = "report.json", "recipe.yaml"
CHECKPOINTS, LOGS = "checkpoints", "logs"
"""Below a run folder: what it goes on from, while it is unfinished; and what trackers write."""
RECORD, LOCK, SENDING = "run.json", "lock", ".to-the-hub-"
"""Below `checkpoints/`: what is trained; what a living process holds; copies on their way to the Hub."""
ANOTHER = "  Give another one (output.folder=…), or move or delete this one."
IN_A_REPORT = ("task", "metrics", "data", "recipe", "certificate")
"""Fields without which a report.json is not one."""


class RunFiles:
    """The files that a run writes into its folder: each is there whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: set[str] = set()
        """Relative to the folder, with `/`."""

    @contextlib.contextmanager
    def placed(self) -> Iterator[Path]:
        """A folder to write files into, which are then moved to their places; none is, after an error."""
        with placed(self.folder) as aside:
            yield aside
            self.names |= {path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()}

    def hashes(self) -> dict[str, str]:
        """A hash of each file by its name."""
        return {name: hash_file(self.folder / name) for name in sorted(self.names)}


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The content of report.json; None where there is none, or none that is whole."""
    facts = _read_json(folder / REPORT)
    return facts if facts is not None and all(name in facts for name in IN_A_REPORT) else None


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """report.json, by which a run is finished."""
    write_file(folder / REPORT, dump_json(facts, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What an unfinished run trains; None where there is none, or none that is whole."""
    return _read_json(folder / CHECKPOINTS / RECORD)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    write_file(folder / CHECKPOINTS / RECORD, json.dumps(record, indent=1))


def _read_json(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else None
    return None


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    return (folder / RECIPE).is_file() and read_facts(folder) is not None


def claim_folder(name: str, resume: bool = False) -> Path:
    """The output folder, which must be writable, and empty or not there yet, or hold a run to go on with; left as it is.

    Raises `RecipeError`.
    """
    try:
        folder = Path(name).expanduser()
        _require_room(folder, name, resume)
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not parent.is_dir():
            raise RecipeError(f"output folder `{name}` can't be made: `{parent}` is a file.\n{ANOTHER}")
        with tempfile.TemporaryDirectory(dir=parent) as tried:
            Path(tried, folder.name or "run").mkdir()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"output folder `{name}` can't be made: {reason}.\n{ANOTHER}") from None
    return folder


def _require_room(folder: Path, name: str, resume: bool) -> None:
    """Raises `RecipeError` where a run would meet what is not its own."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise RecipeError(f"output folder `{name}` is a file, or a link that leads nowhere.\n{ANOTHER}")
    if is_finished(folder):
        raise RecipeError(f"output folder `{name}` already holds a finished run.\n{ANOTHER}")
    if read_record(folder) is not None:
        if not resume:
            again = "To go on with it: the same command with --resume."
            raise RecipeError(f"output folder `{name}` holds an unfinished run.\n  {again}\n{ANOTHER}")
    elif is_taken(folder):
        damaged = next((each for each in (f"{CHECKPOINTS}/{RECORD}", REPORT) if (folder / each).is_file()), None)
        holds = f"holds a run that can't be gone on with: its {damaged} is damaged" if damaged else "is not empty"
        raise RecipeError(f"output folder `{name}` {holds}.\n{ANOTHER}")


def is_taken(folder: Path) -> bool:
    """Whether a folder is there and holds something; what a run leaves that is killed as it begins is nothing."""
    with contextlib.suppress(OSError):  # a name that no folder can have
        if not folder.is_dir():
            return False
        below = folder / CHECKPOINTS
        others = [path for path in folder.iterdir() if path != below and not path.name.startswith(ASIDE)]
        return bool(others) or (below.exists() and (not below.is_dir() or any(not _is_ours(path) for path in below.iterdir())))
    return False


def _is_ours(path: Path) -> bool:
    """Whether a path below `checkpoints/` is a run's, and no more than its beginning."""
    return path.name == LOCK or path.name.startswith(ASIDE)


@contextlib.contextmanager
def lock_run_folder(folder: Path, resume: bool) -> Iterator[None]:
    """The folder is this run's, as long as it lives. Where no checkpoint was written, nothing of it is left in the end; beside
    files of others its record is, so that it can be resumed.

    Raises `RecipeError` where another run has it, or has finished there meanwhile.
    """
    there, problem = folder.is_dir(), None
    with contextlib.ExitStack() as files:
        if PartialState().is_main_process:
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            holder = _lock(files, folder / CHECKPOINTS / LOCK)
            if holder:
                others = f"another run is at work in `{folder}`: {holder}."
                problem = f"{others}\n  Wait for it, or give another folder (output.folder=…)."
            else:
                try:  # again: another run may have finished there since
                    _require_room(folder, str(folder), resume)
                except RecipeError as error:
                    problem = str(error)
                    (folder / CHECKPOINTS / LOCK).unlink(missing_ok=True)
                    _remove_if_empty(folder / CHECKPOINTS)
        (problem,) = broadcast_object_list([problem])
        if problem:
            raise RecipeError(problem)
        try:
            yield
        finally:
            if PartialState().is_main_process and newest_checkpoint(folder) is None:
                _remove_state(folder)
                own = [folder / CHECKPOINTS / name for name in (RECORD, LOCK)]
                alone = not any(path.is_file() and path not in own for path in folder.rglob("*"))
                # Beside files of others the record stays: it says that the folder is a run's, which can be resumed.
                _release(folder, (RECORD, LOCK) if alone else (LOCK,))
                if not there:
                    _remove_if_empty(folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run's last phase that has one, whole or not."""
    for phase in sorted(_phases(folder), reverse=True):
        if (phase / FINISHED).is_dir():
            return phase / FINISHED
        if steps := list_steps(phase):
            return steps[-1]
    return None


def _phases(folder: Path) -> list[Path]:
    below = folder / CHECKPOINTS
    return [path for path in below.glob("[0-9]*") if path.name.isdecimal() and path.is_dir() and not path.is_symlink()]


def remove_checkpoints(folder: Path) -> None:
    """Remove what a run keeps to go on from, and what it wrote aside, and nothing else."""
    _remove_state(folder)
    _release(folder, (RECORD, LOCK))


def _remove_state(folder: Path) -> None:
    """Remove the checkpoints, and what was written aside."""
    below = folder / CHECKPOINTS
    for phase in _phases(folder):
        own = (*list_steps(phase), phase / FINISHED, *phase.glob(f".{PREFIX}*"), *phase.glob(f".{FINISHED}-*"))
        for path in own:
            shutil.rmtree(path, ignore_errors=True)
        _remove_if_empty(phase)
    for path in (*below.glob(f"{SENDING}*"), *below.glob(f"{ASIDE}*"), *folder.glob(f"{ASIDE}*")):
        shutil.rmtree(path, ignore_errors=True)


def _release(folder: Path, names: Sequence[str]) -> None:
    """Remove files of `checkpoints/`, of which the lock is the last, and that folder where nothing else is in it."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / CHECKPOINTS / name).unlink()
    _remove_if_empty(folder / CHECKPOINTS)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _lock(files: contextlib.ExitStack, path: Path) -> str | None:
    """Hold a file until `files` are closed, or this process is gone; gives who holds it already.

    Whoever held it may have removed it before it could be held: then it is another file that has that name now.
    """
    while True:
        file = files.enter_context(path.open("a+", encoding="utf-8"))
        if holder := _hold(file):
            return holder
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        path.parent.mkdir(parents=True, exist_ok=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return None


def _hold(file: IO[str]) -> str | None:
    try:
        import fcntl
    except ImportError:  # not a Unix: there is no lock
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "a process that says no more"
    except OSError:  # a file system without locks
        return None
    return None
