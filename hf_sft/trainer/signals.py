"""Signals that ask a run to end: it finishes its step and writes a checkpoint first, where it takes steps."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

SIGNALS = {
    number: 128 + shown
    for name, shown in {"SIGTERM": 15, "SIGINT": 2, "SIGUSR1": 15}.items()  # Slurm warns by SIGUSR1
    if (number := getattr(signal, name, None)) is not None
}
"""What is listened to, and the exit status that answers it."""
TWICE = 2.0
"""Seconds in which a second signal is the first one again: a terminal and a launcher both send it."""


SAY_LATER = """
import os, sys, time
launcher, until = int(sys.argv[1]), time.monotonic() + 60
while time.monotonic() < until:
    try:
        os.kill(launcher, 0)
    except OSError:
        break
    time.sleep(0.05)
print(sys.argv[2], file=sys.stderr)
"""


def say_after_launcher(text: str) -> None:
    """Print a text once more when torch's launcher has ended, whose traceback would hide it; nothing without that launcher."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        command = [sys.executable, "-I", "-c", SAY_LATER, str(os.getppid()), text]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run. `status` is its exit status."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.status = number, SIGNALS[number]


class SignalHandler:
    """While this is entered, the first signal ends the run where it `waits` for one, and is noted in `heard` elsewhere, to be
    asked for after each step; a second one ends the process at once. Only the main thread can listen."""

    def __init__(self) -> None:
        self.signal_number: int = 0
        """The number of the signal; 0 for none."""
        self.waits = True
        """Whether a signal ends the run at once."""
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *raised: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """While steps are taken: it waits for the end of one."""
        self.waits = False
        try:
            yield
        finally:
            self.waits = True

    def _hear(self, number: int, frame: Any) -> None:
        if self.signal_number and time.monotonic() - self._since > TWICE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
            if self.waits:
                raise Interrupted(number)
