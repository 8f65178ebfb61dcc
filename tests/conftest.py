"""No network, the CPU, caches of the session's own, and tiny checkpoints built once."""

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).parent
_SESSION = Path(tempfile.mkdtemp(prefix="hf_sft-tests-"))
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
# One file for all workers: the process that started them reads it at the end.
ATTEMPTS = Path(os.environ["HF_SFT_TEST_ATTEMPTS"]) if IS_WORKER else _SESSION / "attempts.txt"
ATTEMPTS.touch()
if IS_WORKER:
    # Workers share the cores.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

# Read when the libraries are imported, so they are set before any of them is.
os.environ.update(
    HF_HOME=str(_SESSION / "hf_home"),
    HF_HUB_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
    HF_SFT_TEST_ATTEMPTS=str(ATTEMPTS),
    PYTHONPATH=os.pathsep.join([str(_HERE / "no_network"), str(_HERE.parent)]),
)
sys.path.insert(0, str(_HERE / "no_network"))

import pytest  # noqa: E402
import sitecustomize  # noqa: E402

sitecustomize.install()
if IS_WORKER or "-n" not in sys.argv:  # else this process runs no test, and its workers would wait for its imports
    import hf_sft
    import hf_sft.models.reload_check
    import hf_sft.reports.plots
    import hf_sft.runs.train
    from tests import tiny

    # As `hf-sft` has them.
    FRESH_PROCESS = hf_sft.models.reload_check.fresh_process
    DRAW_RUN = hf_sft.reports.plots.draw_run
    tiny.train_quickly()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Trainer collects garbage before each training, which takes longer than one: what the libraries made is none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoints() -> dict[str, Path]:
    """Folders of tiny checkpoints without a task's head, by family."""
    return {family: tiny.build(family, _SESSION / "checkpoints" / family) for family in tiny.ALL_FAMILIES}


@pytest.fixture(scope="session")
def finished_run(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run on rows of a problem, by a family's tiny checkpoint; its files lie in `data` beside it.

    Trained once for all tests, which read it: one that changes something takes a copy.
    """
    made: dict[tuple[str, str], Path] = {}

    def run(problem: str = tiny.PROBLEMS[0], family: str = "bert") -> Path:
        if (problem, family) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{problem}")
            files = tiny.write_rows(folder / "data", problem, train=20)
            hf_sft.train(tiny.recipe(checkpoints[family], files, folder / "run", task=tiny.task_of(problem)))
            made[problem, family] = folder / "run"
        return made[problem, family]

    return run


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a folder of its own, so that `runs/…` is its own too."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """No socket left the machine, in no process that the suite started; the one attempt is the guard's own test."""
    if IS_WORKER:
        return
    reached = [line for line in ATTEMPTS.read_text().splitlines() if line != sitecustomize.ELSEWHERE]
    if reached:
        session.exitstatus = 1
        print(f"\nsockets that tried to leave the machine: {reached}", file=sys.stderr)
