"""Processes of the tests' own that begin at once: forks of one that has imported everything, alone or two that train together.

A few tests start a new Python, or `accelerate launch`: those of which that is the point.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])
LONG = 600
"""Seconds after which a process hangs, on however busy a machine."""
STREAMS = ("stdin", "stdout", "stderr")


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run(function: Callable[..., None], *args: Any, ranks: int = 1, closed: Sequence[str] = ()) -> list[Done]:
    """A function of a module in a process, or in several that find each other as those of a launcher do; what became of each.

    `closed` names streams that are closed, as by `<&-`.
    """
    port, started = _free_port(), []
    with tempfile.TemporaryDirectory() as told:
        for rank in range(ranks):
            files = [Path(told, f"{name}-{rank}") for name in STREAMS]
            for file in files:
                file.touch()
            how = {"folder": os.getcwd(), "files": files, "closed": closed, "env": dict(os.environ), "path": sys.path}
            how["group"] = {} if ranks == 1 else _of_a_group(rank, ranks, port)
            process = SERVER.Process(target=_enter, args=(function, args, how))
            process.start()
            started.append((process, files[1:]))
        for process, _ in started:
            process.join(LONG)
            if process.is_alive():
                process.kill()
                process.join()
        return [Done(process.exitcode, *(file.read_text() for file in files)) for process, files in started]


def by_two(function: Callable[..., Any], *args: Any) -> list[Done]:
    """The same in two processes that train together; each has to end well."""
    done = run(function, *args, ranks=2)
    assert [each.returncode for each in done] == [0, 0], "\n".join(each.stderr[-4000:] for each in done)
    return done


def cli(*words: Any, closed: Sequence[str] = ()) -> Done:
    """The command `hf-sft`."""
    (done,) = run(command, [str(word) for word in words], closed=closed)
    return done


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _of_a_group(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What `accelerate launch` tells its workers."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    words = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    return {**words, **{name: str(number) for name, number in numbers.items()}}


def _enter(function: Callable[..., None], args: tuple[Any, ...], how: dict[str, Any]) -> None:
    for place, (name, path) in enumerate(zip(STREAMS, how["files"], strict=True)):
        opened = os.open(path, os.O_WRONLY if place else os.O_RDONLY)
        os.dup2(opened, place)
        os.close(opened)
        if name in how["closed"]:
            os.close(place)
            setattr(sys, name, None)
        else:
            setattr(sys, name, os.fdopen(place, "w" if place else "r", buffering=1, closefd=False))
    os.environ.clear()
    os.environ.update(how["env"] | how["group"])
    os.chdir(how["folder"])
    sys.path[:] = how["path"]
    from tests import tiny

    tiny.train_quickly()
    status = 1
    try:
        if how["group"]:
            import torch

            torch.set_num_threads(1)
        function(*args)
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if how["group"]:
            from accelerate import PartialState

            PartialState().destroy_process_group()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


def command(words: list[str]) -> None:
    """`hf-sft` with words."""
    from hf_sft.cli import main

    sys.argv = ["hf-sft", *words]
    main()


def code(text: str, *words: Any) -> Done:
    """What `python -c` says of a program and its arguments, but that this package is imported already."""
    (done,) = run(execute, text, [str(word) for word in words])
    return done


def execute(text: str, words: list[str]) -> None:
    """A program, as `python -c` has it."""
    sys.argv = ["-c", *words]
    exec(text, {"__name__": "__main__"})


def train_all(recipes: Sequence[dict[str, Any]]) -> None:
    """Each recipe in turn."""
    import hf_sft
    from tests import quaint  # noqa: F401  (a family of models, made known)

    for recipe in recipes:
        hf_sft.train(hf_sft.Recipe.model_validate(recipe))
