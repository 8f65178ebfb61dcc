"""Code that hf_sft does not bring runs only by the caller's own word, wherever a file may name it and whatever the verb."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

import hf_sft
from hf_sft.cli import main
from hf_sft.models import reload_check
from hf_sft.recipe.yaml_reader import read_yaml
from hf_sft.storage import foreign_code
from tests import tiny
from tests.altered import with_code
from tests.conftest import FRESH_PROCESS

SINGLE = "single_label_classification"
PLANTED = """
from pathlib import Path
Path({witness!r}).write_text("it ran")
"""
TASK = (
    PLANTED
    + "from hf_sft.tasks.sequence_classification import SequenceClassification\nclass Mine(SequenceClassification): pass\n"
)
METHOD = PLANTED + "from hf_sft.methods.full import Full\nclass Mine(Full): pass\n"
AID = PLANTED + "from hf_sft.aids.label_smoothing import LabelSmoothing\nclass Mine(LabelSmoothing): pass\n"
METRIC = PLANTED + "import evaluate\n"
TEMPLATE = (
    "{{ ().__class__.__base__.__subclasses__() | string }}{% set x = cycler.__init__.__globals__.os.system('touch WITNESS') %}"
)


class Scene:
    """A recipe and a finished run, in which code is planted that leaves a witness when it runs."""

    def __init__(self, folder: Path, checkpoint: Path, run: Path | None):
        self.folder, self.checkpoint = folder, checkpoint
        self.witness, self.code = folder / "witness", folder / "code"
        self.code.mkdir()
        self.recipe = tiny.recipe(checkpoint, tiny.write_rows(folder / "data", SINGLE), folder / "new", "head_only")
        self.run = Path(shutil.copytree(run, folder / "run")) if run else folder / "run"

    def write(self, name: str, text: str) -> Path:
        path = self.code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(witness=str(self.witness)))
        return path

    def base(self) -> Path:
        return Path(shutil.copytree(self.checkpoint, self.folder / "base"))

    def change_run(self, change: Callable[[dict[str, Any]], Any], name: str = "recipe.yaml") -> None:
        path = self.run / name
        read = read_yaml(path.read_text()).value  # YAML 1.2: `no` is a word
        change(read)
        path.write_text(json.dumps(read))


def in_checkpoint(s: Scene) -> None:
    with_code(base := s.base(), s.witness)
    s.recipe["model"] = {"checkpoint": str(base), "trust_remote_code": True}


def in_tokenizer(s: Scene) -> None:
    base = s.base()
    (base / "odd.py").write_text(PLANTED.format(witness=str(s.witness)) + "class OddTokenizer: pass\n")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["odd.OddTokenizer", None]}, "tokenizer_class": "OddTokenizer"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    s.recipe["model"] = {"checkpoint": str(base), "trust_remote_code": True}


def in_task(s: Scene) -> None:
    s.write("lab/tasks.py", TASK)
    s.recipe["task"]["type"] = "lab.tasks"


def in_package_of_task(s: Scene) -> None:
    s.write("lab/__init__.py", PLANTED)
    s.write("lab/tasks.py", TASK.replace(PLANTED, ""))
    s.recipe["task"]["type"] = "lab.tasks"


def in_method(s: Scene) -> None:
    s.write("lab/methods.py", METHOD)
    s.recipe["method"] = {"type": "lab.methods"}


def in_aid(s: Scene) -> None:
    s.write("lab/aids.py", AID)
    s.recipe["aids"] = [{"type": "lab.aids"}]


def in_metric(s: Scene) -> None:
    s.recipe["evaluation"] = {"metrics": [f"evaluate:{s.write('mine/mine.py', METRIC).parent}", "accuracy"]}


def in_best(s: Scene) -> None:
    s.recipe["evaluation"] = {"best": f"evaluate:{s.write('mine/mine.py', METRIC).parent}"}


def in_override(s: Scene) -> None:
    s.write("lab/methods.py", METHOD)
    s.recipe["method"] = {"type": "lab.methods", "nonsense": 1}


RECIPES = [in_checkpoint, in_tokenizer, in_task, in_package_of_task, in_method, in_aid, in_metric, in_best, in_override]


def run_task(s: Scene) -> None:
    s.write("lab/tasks.py", TASK)
    s.change_run(lambda recipe: recipe["task"].update(type="lab.tasks"))


def run_metric(s: Scene) -> None:
    name = f"evaluate:{s.write('mine/mine.py', METRIC).parent}"
    s.change_run(lambda recipe: recipe["evaluation"].update(best=name))


def run_model(s: Scene) -> None:
    with_code(s.run, s.witness)
    s.change_run(lambda recipe: recipe["model"].update(trust_remote_code=True))
    s.change_run(lambda asked: asked["model"].update(trust_remote_code=True), "probes/asked.json")


def run_probes(s: Scene) -> None:
    s.write("lab/tasks.py", TASK)
    s.change_run(lambda asked: asked["task"].update(type="lab.tasks"), "probes/asked.json")


OF_RUNS = [
    *((run_task, verb) for verb in ("evaluate", "predict")),
    (run_metric, "evaluate"),
    *((run_model, verb) for verb in ("evaluate", "predict", "certify", "publish")),
    *((run_probes, verb) for verb in ("certify", "publish")),
]


@pytest.fixture(scope="module")
def finished(finished_run) -> Path:
    return finished_run()


@pytest.fixture
def scene(checkpoints, tmp_path, monkeypatch) -> Scene:
    made = Scene(tmp_path, checkpoints["bert"], None)
    monkeypatch.syspath_prepend(str(made.code))
    return made


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        del sys.modules[name]


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["hf-sft", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def outcome(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int | str:
    """The exit status; with consent what is planted may break, which is its own business."""
    try:
        return command(monkeypatch, *words)
    except Exception as error:
        return str(error)


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize("plant", RECIPES, ids=lambda each: each.__name__)
def test_what_a_recipe_names_runs_only_with_consent(plant, verb, scene, monkeypatch, capsys):
    plant(scene)
    path = scene.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(scene.recipe))
    assert command(monkeypatch, verb, path) == 2
    said = capsys.readouterr().err
    assert "--trust-remote-code" in said and "Traceback" not in said
    assert not scene.witness.exists()
    if verb == "check":
        outcome(monkeypatch, verb, path, "--trust-remote-code")
        assert scene.witness.exists(), "the witness is one: with consent it runs"


@pytest.mark.parametrize(("plant", "verb"), OF_RUNS, ids=lambda each: getattr(each, "__name__", each))
def test_what_a_run_folder_names_runs_only_with_consent(plant, verb, scene, finished, monkeypatch, capsys):
    shutil.copytree(finished, scene.run)
    plant(scene)
    words = {"predict": ["goal"], "publish": ["me/out"]}.get(verb, [])
    status = command(monkeypatch, verb, scene.run, *words)
    said = capsys.readouterr().err
    assert (status, "Traceback" in said) == (2, False), said
    assert not scene.witness.exists()
    outcome(monkeypatch, verb, scene.run, *words, "--trust-remote-code")
    assert scene.witness.exists(), "the witness is one: with consent it runs"


class Planted:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "certify"])
def test_an_adapter_can_bring_no_code_with_consent_neither(verb, scene, monkeypatch, capsys):
    hf_sft.train(tiny.recipe(scene.checkpoint, tiny.write_rows(scene.folder / "data", SINGLE), scene.run, "lora:kept"))
    scene.write("lab/models.py", PLANTED)
    config = json.loads((scene.run / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "Mine", "parent_library": "lab.models"}
    (scene.run / "adapter_config.json").write_text(json.dumps(config))
    words = {"predict": ["goal"]}.get(verb, [])
    assert command(monkeypatch, verb, scene.run, *words, "--trust-remote-code") == 0
    (scene.run / "adapter_model.safetensors").unlink()
    (scene.run / "adapter_model.bin").write_bytes(pickle.dumps({"weights": Planted(scene.witness)}))
    capsys.readouterr()
    assert command(monkeypatch, verb, scene.run, *words, "--trust-remote-code") == 2
    assert "found only pickled ones" in capsys.readouterr().err
    assert not scene.witness.exists()


@pytest.mark.parametrize("data", ["folder", "file"])
def test_a_data_set_can_bring_no_script_with_consent_neither(data, scene, monkeypatch, capsys):
    script = scene.write("scripted/scripted.py", PLANTED)
    scene.recipe["data"] = {"dataset": str(script if data == "file" else script.parent)}
    path = scene.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(scene.recipe))
    assert command(monkeypatch, "check", path, "--trust-remote-code") == 2
    assert not scene.witness.exists()


def test_a_chat_template_can_reach_nothing_with_consent_neither(scene, monkeypatch, capsys):
    rows = [{"messages": [{"role": "user", "content": "goal"}, {"role": "assistant", "content": "match"}]}] * 12
    Dataset.from_list(rows).to_json(scene.folder / "talks.jsonl")
    base = Path(shutil.copytree(scene.checkpoint.parent / "gpt2", scene.folder / "base"))
    (base / "chat_template.jinja").write_text(TEMPLATE.replace("WITNESS", str(scene.witness)))
    scene.recipe["model"] = {"checkpoint": str(base)}
    scene.recipe["data"] = {"dataset": "json", "data_files": str(scene.folder / "talks.jsonl")}
    scene.recipe["task"] = {"type": "chat"}
    path = scene.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**scene.recipe, "method": {"type": "full"}}))
    assert command(monkeypatch, "check", path, "--trust-remote-code") == 2
    assert not scene.witness.exists()


@pytest.mark.parametrize("name", ["unittest.__main__", "pytest.__main__", "this.that", "antigravity.x", "json.tool"])
def test_modules_of_python_itself_and_programs_are_not_imported(name, scene, monkeypatch, capsys):
    scene.recipe["task"]["type"] = name
    with pytest.raises(hf_sft.RecipeError, match=r"is not part of an installed package: its code is not run"):
        hf_sft.check(scene.recipe)


def test_installed_modules_need_no_consent(scene):
    scene.recipe["task"]["type"] = "hf_sft.tasks.sequence_classification"
    hf_sft.check(scene.recipe)
    assert foreign_code.is_allowed("transformers.models.bert")


def test_a_namespace_that_is_only_in_part_installed_needs_consent(scene, monkeypatch):
    """Its parts lie in several folders, of which any may hold the module."""
    for part in ("installed/lab/more.py", "lab/tasks.py"):
        scene.write(part, TASK)
    monkeypatch.syspath_prepend(str(scene.code / "installed"))
    monkeypatch.setattr(foreign_code, "_installed", lambda: (scene.code / "installed",))
    assert not foreign_code.is_allowed("lab.tasks")
    monkeypatch.setattr(foreign_code, "_installed", lambda: (scene.code,))
    assert foreign_code.is_allowed("lab.tasks")


def test_a_project_that_is_installed_in_place_needs_no_consent(scene, monkeypatch):
    """As `pip install -e` leaves it: a note of where the project lies."""
    in_task(scene)
    scene.write("site/lab-1.0.dist-info/METADATA", "Name: lab\nVersion: 1.0\n")
    note = json.dumps({"url": scene.code.as_uri(), "dir_info": {"editable": True}})
    (scene.code / "site" / "lab-1.0.dist-info" / "direct_url.json").write_text(note)
    assert not foreign_code.is_allowed("lab.tasks")
    monkeypatch.syspath_prepend(str(scene.code / "site"))
    monkeypatch.setattr(foreign_code, "_installed", foreign_code._installed.__wrapped__)
    assert foreign_code.is_allowed("lab.tasks") and not foreign_code.is_allowed("unittest.case")
    assert not scene.witness.exists()


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_folder_that_the_caller_names_needs_no_other_consent_and_hides_nothing(by, scene, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(scene.code)])
    monkeypatch.delenv(foreign_code.PLUGINS, raising=False)
    in_task(scene)
    scene.write("transformers/__init__.py", PLANTED)
    path = scene.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(scene.recipe))
    assert command(monkeypatch, "check", path) == 2
    words = ["--plugins", scene.code] if by == "option" else []
    if by == "environment":
        monkeypatch.setenv(foreign_code.PLUGINS, str(scene.code))
    assert command(monkeypatch, "check", path, *words) == 0
    assert scene.witness.read_text() == "it ran"
    scene.witness.unlink()
    assert not foreign_code.is_allowed("elsewhere.transformers")
    monkeypatch.delenv(foreign_code.PLUGINS, raising=False)


NAMES = ("datasets", "profile", "torch", "sitecustomize", "json", "hf_sft", "numpy", "six", "bitsandbytes")


@pytest.mark.parametrize("started", ["-m", "script", "here"])
def test_a_fresh_process_imports_nothing_from_where_it_is_started(started, scene, finished, monkeypatch):
    for name in NAMES:
        scene.write(f"{name}.py", PLANTED)
    monkeypatch.chdir(scene.code)
    if started != "-m":  # which has the folder's whole name there
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(scene.code)])
    if started == "here":
        monkeypatch.setattr(sys, "path", [".", *sys.path])
    facts = FRESH_PROCESS(lambda: None, str(finished), str(finished), "cpu", False)()
    assert facts["rows"] == 11 and facts["largest_difference"] <= facts["bound"]
    assert not scene.witness.exists()
    subprocess.run([sys.executable, "-c", "import profile"], check=True)
    assert scene.witness.exists(), "the witness is one: another process would have run it"


def test_what_the_program_could_import_a_fresh_process_can_too(scene, finished):
    shutil.copytree(finished, scene.run)
    run_probes(scene)
    with pytest.raises(ValueError, match="is not part of an installed package"):
        FRESH_PROCESS(lambda: None, str(scene.run), str(scene.run), "cpu", False)()
    assert not scene.witness.exists()
    assert FRESH_PROCESS(lambda: None, str(scene.run), str(scene.run), "cpu", True)()["rows"] == 11
    assert scene.witness.exists()


def test_consent_is_not_taken_from_the_folder(scene, finished):
    """A run whose probes and recipe say that its code is trusted: only the caller says so."""
    shutil.copytree(finished, scene.run)
    run_model(scene)
    with pytest.raises(hf_sft.CheckpointError, match=r"can't be loaded again(.|\n)*--trust-remote-code"):
        reload_check.start(scene.run, scene.run, "cpu")()
    assert not scene.witness.exists()
