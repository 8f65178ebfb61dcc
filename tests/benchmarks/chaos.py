"""Random faults over small runs: nothing is lost that was there before, there is no traceback, and what is resumed ends in the
bits of a run that nothing happened to.

    python -m tests.benchmarks.chaos [--faults 300] [--minutes 60] [--seed 0] [--only KIND]

A fault is one of `KINDS`, at a random moment of a random recipe of `tests.stopping` (dropout, early stopping, two phases,
LoRA, stored features, bfloat16). While a run is at work, files of somebody else are put into its folder. After the fault the
same command is given with --resume, up to three times. A run ends with 0 and the same weights, report and predictions; or,
where its own files were removed or cut, with 2 and a message. Anything else is printed, and the exit status is 1.
"""

import argparse
import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests import processes, stopping, tiny

KINDS = (
    *("kill", "stop and continue", "full disk", "read-only disk", "removed file", "cut file"),
    *("second run", "full cache", "busy machine", "asked to end"),
)
FOREIGN = {"notes.txt": "mine", "checkpoints/my_model.bin": "weights", "checkpoints/0/mine.txt": "mine too"}
SLOWLY = 0.01
"""Seconds that each step, evaluation and file takes more, so that moments in all of them are met."""
LONG = 240
"""Seconds after which a process that has not ended is a fault of ours."""
WRITES = (
    ("hf_sft.storage.atomic_folder", "_sync"),
    ("hf_sft.storage.checkpoint_files", "save_file"),
    ("pathlib", "Path.write_text"),
    ("pathlib", "Path.replace"),
)
"""What fails on a disk that is full, or can only be read."""


def child(
    recipe: dict[str, Any], output: Path, how: dict[str, Any], told: str, fault: tuple[int, int] | None, env: Any
) -> None:
    """A training as the command line has it: 0 done, 2 a message, 128 + signal; with 1 the traceback is in `told`."""
    import hf_sft
    from hf_sft.errors import HfSftError
    from hf_sft.trainer.signals import Interrupted

    os.environ.update(env)
    with open(told, "a") as said:
        os.dup2(said.fileno(), 2)
    tiny.train_quickly()
    stopping.slow_down(SLOWLY)
    if fault is not None:
        break_disk(*fault)
    try:
        hf_sft.train({**recipe, "output": {"folder": str(output)}}, **how)
    except Interrupted as interrupted:
        os._exit(interrupted.status)
    except HfSftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def break_disk(after: int, number: int) -> None:
    """From so many writes on, every one fails with this error."""
    import importlib

    left = [after]

    def broken(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return function(*given, **named)

    for module, name in WRITES:
        owner: Any = importlib.import_module(module)
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        last = name.split(".")[-1]
        function = getattr(owner, last)
        setattr(owner, last, _plain(partial(broken, function)))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """As a function, which a class binds to its objects; a partial is none."""
    return lambda *given, **named: function(*given, **named)


class Case:
    """One run, its folder, and what became of it."""

    def __init__(self, name: str, recipe: dict[str, Any], output: Path, long: float, drawn: random.Random):
        self.name, self.recipe, self.output, self.long, self.drawn = name, recipe, output, long, drawn
        self.planted: dict[str, str] = {}
        self.statuses: list[int | None] = []

    def start(self, fault: tuple[int, int] | None = None, env: Any = None, **how: Any) -> Any:
        process = processes.SERVER.Process(
            target=child, args=(self.recipe, self.output, how, f"{self.output}.said", fault, env or {})
        )
        process.start()
        return process

    def wait(self, process: Any) -> int | None:
        process.join(LONG)
        if process.is_alive():
            process.kill()
            process.join()
            self.statuses.append(None)
            return None
        self.statuses.append(process.exitcode)
        return process.exitcode

    def begin(self, process: Any) -> None:
        """Until it is at work; then other people's files are put beside its own."""
        stopping.wait_until_begun(self.output, process.is_alive)
        if process.is_alive() and not self.planted:
            for name, content in FOREIGN.items():
                with contextlib.suppress(OSError):
                    (self.output / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.output / name).write_text(content)
                    self.planted[name] = content

    def pause(self) -> None:
        time.sleep(self.drawn.uniform(0, self.long))

    def kill(self, process: Any) -> None:
        process.kill()
        process.join()

    def lost(self) -> list[str]:
        return [name for name, content in self.planted.items() if not _holds(self.output / name, content)]

    @property
    def said(self) -> str:
        path = Path(f"{self.output}.said")
        return path.read_text() if path.exists() else ""


def _holds(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text() == content


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but work, and end by themselves after a while."""
    context = multiprocessing.get_context("fork")
    loops = [context.Process(target=_work, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def _work() -> None:
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        pass


def strike(kind: str, case: Case) -> bool:
    """Have one fault happen; gives whether a message in place of an end is all right."""
    drawn = case.drawn
    if kind in ("full disk", "read-only disk"):
        number = errno.ENOSPC if kind == "full disk" else errno.EROFS
        process = case.start(fault=(drawn.randrange(0, 120), number))
        case.begin(process)
        case.wait(process)
        return False
    if kind == "full cache":
        small = {"HF_SFT_CACHE_BYTES": "1kB", "HF_HOME": f"{case.output}.home"}
        other = Case(case.name, case.recipe, Path(f"{case.output}.other"), case.long, drawn)
        both = [case.start(env=small), other.start(env=small)]
        case.begin(both[0])
        statuses = [each.wait(process) for each, process in zip((case, other), both, strict=True)]
        case.statuses.append(statuses[1])
        shutil.rmtree(f"{case.output}.other", ignore_errors=True)
        return False
    if kind == "busy machine":
        with busy(4 * (os.cpu_count() or 1)):
            process = case.start()
            case.begin(process)
            case.pause()
            case.kill(process)
            case.wait(case.start(resume=True))
        return False
    process = case.start()
    case.begin(process)
    case.pause()
    if kind == "kill":
        case.kill(process)
    elif kind == "asked to end":
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        case.wait(process)
    elif kind == "stop and continue":
        for number in (signal.SIGSTOP, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            time.sleep(drawn.uniform(0, 0.5))
        case.wait(process)
    elif kind == "second run":
        second = case.start(resume=drawn.random() < 0.5)
        case.statuses.append(case.wait(second) and 2)
        case.wait(process)
    elif kind in ("removed file", "cut file"):
        case.kill(process)
        own = [path for path in case.output.rglob("*") if path.is_file() and str(path.relative_to(case.output)) not in FOREIGN]
        for path in drawn.sample(own, min(len(own), drawn.choice((1, 1, 2)))):
            if kind == "removed file":
                path.unlink()
            else:
                content = path.read_bytes()
                path.write_bytes(content[: drawn.randrange(0, max(1, len(content)))])
        return True
    return False


def end(case: Case) -> int | None:
    """The same command with --resume, until it is done, or there is a message that stays."""
    status = None
    for _ in range(3):
        status = case.wait(case.start(resume=True))
        if status in (0, 1, None):
            break
    return status


def judge(case: Case, status: int | None, message_will_do: bool, wanted: Any) -> str:
    """`the same`, `a message`, or what is wrong."""
    if lost := case.lost():
        return f"LOST {lost}"
    if "Traceback" in case.said or 1 in case.statuses:
        return "TRACEBACK"
    if None in case.statuses:
        return "HANGS"
    if status == 0:
        return "the same" if fingerprint(case.output) == wanted else "NOT THE SAME"
    return "a message" if status == 2 and message_will_do else f"STATUS {status}"


def fingerprint(output: Path) -> Any:
    """Weights, report without times, predictions."""
    lines = {path.name: path.read_text() for path in sorted((output / "predictions").glob("*.jsonl"))}
    return stopping.fingerprint(output), lines


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("--faults", type=int, default=300)
    asked.add_argument("--minutes", type=float, default=60, help="after which no more faults begin")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", choices=KINDS)
    given = asked.parse_args()
    drawn, found, began = random.Random(given.seed), Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
        checkpoints = {family: tiny.build(family, root / "checkpoints" / family) for family in tiny.FAMILIES}
        recipes = stopping.recipes(checkpoints, root / "recipes")
        wanted, long = {}, {}
        for name, recipe in recipes.items():
            case = Case(name, recipe, root / name, 0, drawn)
            process = case.start()
            stopping.wait_until_begun(case.output, process.is_alive)
            at = time.monotonic()
            assert case.wait(process) == 0, case.said
            wanted[name], long[name] = fingerprint(case.output), time.monotonic() - at
        for number in range(given.faults):
            if time.monotonic() - began > 60 * given.minutes:
                break
            kind, name = given.only or KINDS[number % len(KINDS)], drawn.choice([*recipes])
            case = Case(name, recipes[name], root / f"fault{number}", long[name], drawn)
            message_will_do = strike(kind, case)
            verdict = judge(case, end(case), message_will_do, wanted[name])
            found[kind, verdict] += 1
            if verdict not in ("the same", "a message"):
                print(f"{number}: {kind}, {name}: {verdict}; {case.statuses}\n{case.said[-3000:]}", flush=True)
            for path in root.glob(f"fault{number}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{sum(found.values())} faults in {time.monotonic() - began:.0f} s, seed {given.seed}")
    for kind in KINDS:
        counts = {verdict: count for (of, verdict), count in found.items() if of == kind}
        if counts:
            print(f"  {kind:18} " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    return int(any(verdict not in ("the same", "a message") for _, verdict in found))


if __name__ == "__main__":
    sys.exit(main())
