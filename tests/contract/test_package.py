"""What holds for the package as a whole."""

import ast
import inspect
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from sitecustomize import ELSEWHERE
from transformers import Trainer

import hf_sft
from hf_sft.block import list_kinds, load_kind
from hf_sft.cli import app
from hf_sft.trainer import upstream
from hf_sft.trainer.resumable_trainer import ResumableTrainer
from hf_sft.trainer.step_trainer import StepTrainer
from tests import tiny

PACKAGE = Path(hf_sft.__file__).parent


def test_importing_the_package_and_asking_for_help_do_not_import_torch():
    code = "import sys, hf_sft, hf_sft.cli; assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_are_listed_without_torch():
    code = """
import sys
from hf_sft import cli
sys.argv = ["hf-sft", "list", "metrics"]
try:
    cli.main()
except SystemExit as left:
    assert not left.code
assert not {"torch", "transformers", "datasets"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "f1_macro" in done.stdout, done.stderr


def test_help_is_answered_without_the_libraries_that_take_seconds():
    """How long it takes: tests/benchmarks/start_speed.py."""
    code = """
import sys
from hf_sft import cli
sys.argv = ["hf-sft", "--help"]
try:
    cli.main()
except SystemExit as left:
    assert not left.code
slow = {"torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "pandas", "scipy", "sklearn", "pyarrow"}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "evaluate" in done.stdout, done.stderr


def test_public_names_are_mirrored_for_type_checkers_and_can_be_had():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    mirrored = {node.names[0].name: node.module.removeprefix("hf_sft.") for node in block.body}
    assert mirrored == hf_sft.PUBLIC
    for name in hf_sft.__all__:
        assert getattr(hf_sft, name).__doc__
    with pytest.raises(AttributeError, match="no attribute `tran`"):
        hf_sft.tran  # noqa: B018


@pytest.mark.parametrize("host", [ELSEWHERE])
def test_no_socket_leaves_the_machine(host):
    """Also asserted at the end of the session, over every process that the suite started."""
    with pytest.raises(OSError, match="tests may not reach"):
        socket.create_connection((host, 443), timeout=1)
    code = f"import socket; socket.create_connection(('{host}', 443), timeout=1)"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tests may not reach" in started.stderr


def test_upstream_lines_that_the_trainer_leans_on():
    """An upgrade of transformers that changes one of these must fail here and not in a silent number."""
    epoch = inspect.getsource(Trainer._run_epoch)
    assert "self.training_step(model, inputs, num_items_in_batch)" in epoch
    assert "set_epoch(epoch)" in epoch and "skip_first_batches(train_dataloader" in epoch
    assert "nested_gather(tr_loss, self.args.parallel_mode).mean()" in inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert "self._load_best_model()" in inspect.getsource(Trainer._finalize_training)
    assert "self._save_checkpoint(model, trial)" in inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert epoch.index("self._get_grad_norm(model") < epoch.index("self.optimizer.step()")
    loop = inspect.getsource(Trainer._inner_training_loop)
    for name in ("_init_training_state", "_prepare_for_training", "_run_epoch"):
        assert f"self.{name}(" in loop
    loading = inspect.getsource(Trainer._prepare_for_training)
    assert "self._load_optimizer_and_scheduler(resume" in loading and "self._load_scaler(resume" in loading
    assert epoch.count("self._load_rng_state(resume_from_checkpoint)") == 2
    assert "metrics = self.evaluate(" in inspect.getsource(Trainer._evaluate)


def test_the_trainer_knows_each_method_that_it_overrides():
    ours = {name for each in (StepTrainer, ResumableTrainer) for name in vars(each) if hasattr(Trainer, name)}
    assert {name for name in ours if not name.startswith("__")} == {*upstream.OVERRIDDEN}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda patch: patch.setattr(Trainer, "_save_checkpoint", lambda self, model: None),
            r"_save_checkpoint` takes \(model\) in ",
        ),
        (lambda patch: patch.delattr(Trainer, "_run_epoch"), r"_run_epoch` is not there in transformers "),
    ],
)
def test_another_trainer_is_refused_before_anything_is_written(change, message, checkpoints, tmp_path, monkeypatch):
    recipe = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0]), tmp_path / "run")
    change(monkeypatch)
    with pytest.raises(hf_sft.HfSftError, match=rf"`transformers\.Trainer\.{message}(.|\n)*pip install 'transformers>=5"):
        hf_sft.train(recipe)
    assert not (tmp_path / "run").exists()


def test_the_versions_that_a_message_names_are_those_that_are_allowed():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert f"transformers{upstream.TESTED}" in project["dependencies"]
    workflow = yaml.safe_load((PACKAGE.parent / ".github" / "workflows" / "test.yaml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["transformers"]
    lowest, above = (int(bound.rpartition(".")[2]) for bound in upstream.TESTED.split(","))
    assert [version.split(".")[1] for version in tested] == [str(minor) for minor in range(lowest, above)]


def test_the_readme_names_every_task_in_its_own_words():
    told = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", (PACKAGE.parent / "README.md").read_text(), re.MULTILINE))
    assert {name: told.get(name) for name in list_kinds("tasks")} == {
        name: (load_kind("tasks", name).__doc__ or "").strip() for name in list_kinds("tasks")
    }


@pytest.mark.parametrize("kind", ["tasks", "methods", "aids"])
def test_descriptions_in_lists_have_no_line_breaks_or_indents_of_the_source(kind, capsys):
    app(["list", kind], standalone_mode=False)
    listed = capsys.readouterr().out
    assert not re.search(r"│ {3,}[^│ ]", listed)
    for name in list_kinds(kind):
        first = load_kind(kind, name).__doc__.split("\n\n")[0].split()
        cells = [line.split("│")[2].strip() for line in listed.splitlines() if line.count("│") == 4]
        assert " ".join(first) in " ".join(filter(None, cells))
