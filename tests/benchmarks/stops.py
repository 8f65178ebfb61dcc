"""Runs that are killed, or asked to end, at random moments, gone on with, and compared with those that nobody stopped.

    python -m tests.benchmarks.stops [--kills 30] [--launched 6] [--asked 10] [--seed 0]

Tiny checkpoints with dropout, early stopping, the best checkpoint chosen, float32 and bfloat16. Each step, evaluation and save
is drawn out, so that moments in all of them are met.
"""

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests import stopping, tiny


def main() -> None:
    asked = argparse.ArgumentParser()
    for name, count in (("kills", 30), ("launched", 6), ("asked", 10), ("seed", 0)):
        asked.add_argument(f"--{name}", type=int, default=count)
    given = asked.parse_args()
    drawn = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["HF_HOME"] = str(root / "home")
        checkpoints = {family: tiny.build(family, root / "checkpoints" / family) for family in tiny.FAMILIES}
        recipes = stopping.recipes(checkpoints, root / "recipes")
        unstopped, long = {}, {}
        for name, recipe in recipes.items():
            process = stopping.start(recipe, root / name, slowly=SLOWLY)
            stopping.wait_until_begun(root / name, process.is_alive)
            began = time.monotonic()
            process.join()
            long[name], unstopped[name] = time.monotonic() - began, stopping.fingerprint(root / name)
        names = list(recipes)
        kill([names[i % len(names)] for i in range(given.kills)], recipes, unstopped, long, root, drawn)
        ask([names[i % len(names)] for i in range(given.asked)], recipes, unstopped, long, root, drawn)
        launch([names[i % len(names)] for i in range(given.launched)], recipes, root, drawn)


SLOWLY = 0.03
"""Seconds that each step, evaluation and file takes more."""


def kill(names: list[str], recipes: Any, unstopped: Any, long: Any, root: Path, drawn: random.Random) -> None:
    moments: Counter[str] = Counter()
    same = 0
    for number, name in enumerate(names):
        output = root / f"killed{number}"
        process = stopping.start(recipes[name], output, slowly=SLOWLY)
        stopping.stop_after(process, output, drawn.uniform(0, long[name]), signal.SIGKILL)
        moments[moment(output)] += 1
        same += goes_on(recipes[name], output, unstopped[name], name)
    where = ", ".join(f"{count} {moment}" for moment, count in moments.most_common())
    print(f"killed at random moments: {same} of {len(names)} end in the same weights and report ({where})")


def moment(output: Path) -> str:
    """When it was killed, as far as its folder shows."""
    phases = sorted((output / "checkpoints").glob("[0-9]*"))
    if (output / "report.json").exists():
        return "when it was finished"
    if any(path.name.startswith(".") for phase in phases for path in phase.iterdir()):
        return "in a save"
    if phases and (phases[-1] / "finished").exists():
        return "after a phase's last step"
    return (
        "after a checkpoint" if any(path.is_dir() for phase in phases for path in phase.iterdir()) else "before the first one"
    )


def goes_on(recipe: Any, output: Path, wanted: Any, name: str) -> bool:
    again = stopping.start(recipe, output, resume=True)
    again.join()
    if again.exitcode or stopping.fingerprint(output) != wanted:
        print(f"NOT THE SAME: {name}, {output}\n{stopping.said(output)[-2000:]}")
        return False
    return True


def ask(names: list[str], recipes: Any, unstopped: Any, long: Any, root: Path, drawn: random.Random) -> None:
    from hf_sft.storage.atomic_folder import is_intact
    from hf_sft.storage.run_folder import newest_checkpoint

    found: Counter[str] = Counter()
    for number, name in enumerate(names):
        output = root / f"asked{number}"
        process = stopping.start(recipes[name], output, slowly=SLOWLY)
        stopping.wait_until_begun(output, process.is_alive)
        while stopping.count_steps(output) == 0:
            time.sleep(0.005)
        time.sleep(drawn.uniform(0, 0.6 * long[name]))
        before, alive = stopping.count_steps(output), process.is_alive()
        status = stopping.stop_after(process, output, 0, signal.SIGTERM)
        if not alive or status == 0:
            found["too late"] += 1
            continue
        kept = newest_checkpoint(output)
        found["status 143"] += status == 143
        found["a whole checkpoint"] += kept is not None and is_intact(kept)
        found["within one step"] += stopping.count_steps(output) - before <= 1
        found["the same in the end"] += goes_on(recipes[name], output, unstopped[name], name)
    print(f"asked to end {len(names)} times: {', '.join(f'{what} {count}' for what, count in found.items())}")


def launch(names: list[str], recipes: Any, root: Path, drawn: random.Random) -> None:
    unstopped: dict[str, Any] = {}
    same = 0
    for number, name in enumerate(names):
        if name not in unstopped:
            process = stopping.launch(recipes[name], root / f"two-{name}", slowly=SLOWLY)
            stopping.wait_until_begun(root / f"two-{name}", partial(is_running, process))
            began = time.monotonic()
            process.wait()
            unstopped[name] = stopping.fingerprint(root / f"two-{name}"), time.monotonic() - began
        wanted, seconds = unstopped[name]
        output = root / f"launched{number}"
        process = stopping.launch(recipes[name], output, slowly=SLOWLY)
        stopping.wait_until_begun(output, partial(is_running, process))
        time.sleep(drawn.uniform(0, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left = moment(output)
        stopping.launch(recipes[name], output, resume=True).wait()
        equal = (output / "report.json").exists() and stopping.fingerprint(output) == wanted
        same += equal
        print(f"  two processes, {name}, killed {left}: {'the same' if equal else 'NOT THE SAME'}")
    print(f"two processes, both killed: {same} of {len(names)} end in the same weights and report")


def is_running(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


if __name__ == "__main__":
    main()
