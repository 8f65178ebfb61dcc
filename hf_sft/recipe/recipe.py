"""The blocks put together: a YAML file and overrides in; a `Recipe`, or one error that lists every problem, out."""

import copy
import io
import json
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML

from hf_sft.aids import Aid
from hf_sft.block import TRUSTED, Block, choose
from hf_sft.config.training import OWNED, Training
from hf_sft.data.data_source import DataSource
from hf_sft.errors import RecipeError, nearest, suggest
from hf_sft.evaluation.plan import EvaluationPlan
from hf_sft.methods import LENGTH, Method
from hf_sft.metrics import FOREIGN, list_metrics
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.recipe.overrides import NOWHERE, OVERRIDE, override
from hf_sft.recipe.problems import explain, refuse_owned, show_place
from hf_sft.recipe.yaml_reader import Document, NotYaml, Place, Problem, read_yaml
from hf_sft.storage.package_paths import path_of
from hf_sft.tasks import Task

SURROGATE = re.compile("[\ud800-\udfff]")


class Output(Block):
    """Where the run goes."""

    folder: str
    """The run folder."""
    hub: str | None = None
    """The Hub repository that the finished run is published to; none when not given."""
    private: bool = False
    """Make that repository private."""
    publish_report: bool = False
    """Publish report.html and the predictions too, which hold texts of the data."""
    hub_checkpoints: bool = False
    """While it trains, send the checkpoints to that repository's branch `checkpoints`; the steps don't wait for it."""

    @model_validator(mode="after")
    def _somewhere_to_send(self) -> "Output":
        if self.hub_checkpoints and not self.hub:
            raise PydanticCustomError("hub", "`hub_checkpoints` needs `hub`: the repository that they are sent to")
        return self


class Recipe(Block):
    """One training, one block per step, in the order in which the steps happen."""

    model: Checkpoint
    """Where training starts: `checkpoint`, and on the Hub a `revision`."""
    data: DataSource
    """Where the rows come from: `dataset`, and what it needs."""
    task: Annotated[SerializeAsAny[Task], BeforeValidator(choose("tasks"))]
    """The task: a `type` from hf_sft/tasks, and its fields."""
    method: Annotated[SerializeAsAny[Method], BeforeValidator(choose("methods"))]
    """Which weights move: a `type` from hf_sft/methods, and its fields."""
    aids: tuple[Annotated[SerializeAsAny[Aid], BeforeValidator(choose("aids"))], ...] = ()
    """What is meant to improve generalisation: each a `type` from hf_sft/aids, and its fields."""
    training: Training = Training()  # pyright: ignore[reportCallIssue]
    """How long, how fast, in steps of how many rows; what is not given takes the method's default."""
    evaluation: EvaluationPlan = EvaluationPlan()
    """What is measured, and which of it chooses the best checkpoint."""
    output: Output
    """Where the run goes: its `folder`, and a `hub` repository if it is to be published."""
    seed: int = Field(default=0, ge=0, le=4_000_000_000)
    """Draws the new weights, the order of the rows and dropout."""

    def absolute(self) -> "Recipe":
        """The same with absolute paths of checkpoints and data: it means the same wherever one stands."""
        return self.model_copy(update={"model": self.model.absolute(), "data": self.data.absolute()})


def load_recipe(path: str | Path, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Recipe:
    """Read a recipe, with `block.field=value` words laid over it. Raises `RecipeError`, every problem at once.

    A dotted `type` is imported where `foreign_code` allows it, or with `trust_remote_code`.
    """
    path = path_of(path) if str(path).startswith("~") else Path(path)
    recipe = _build(_read(path), str(path), overrides, trust_remote_code)
    return recipe.model_copy(update={"data": recipe.data.seen_from(path.parent)})


def read_recipe(given: dict[str, Any], overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Recipe:
    """The same from a dict as YAML would give it. Raises `RecipeError`, every problem at once."""
    return _build(Document(copy.deepcopy(given)), "the dict", overrides, trust_remote_code)


def _build(draft: Document, name: str, overrides: Sequence[str], trusted: bool) -> Recipe:
    override(draft, overrides)
    if halves := _find_surrogates(draft.value):
        raise RecipeError(_list_problems(name, [Problem(_line(draft, place), place, halves[place]) for place in halves]))
    problems = _take_owned(draft.value) | _check_metrics(draft.value)
    try:
        recipe = Recipe.model_validate(draft.value, context={TRUSTED: trusted})
    except ValidationError as error:
        recipe, problems = None, explain(error, Recipe, draft.value) | problems
    shown = [place for place in problems if not _is_moot(draft, place)]
    found = [*draft.refused, *(Problem(_line(draft, place), place, problems[place]) for place in shown)]
    if found or recipe is None:
        raise RecipeError(_list_problems(name, found))
    return recipe


def _read(path: Path) -> Document:
    try:
        draft = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(f"{path}: no such file.{_near_files(path)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; expected a recipe: a YAML file.") from None
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}).  Save it as UTF-8.") from None
    except NotYaml as error:
        raise RecipeError(f"{path} can't be read as YAML: line {error.line}, column {error.column}: {error}.") from None
    if not isinstance(draft.value, dict):
        found = {list: "a list", type(None): "nothing"}.get(type(draft.value), "a single value")
        blocks = ", ".join(f"`{name}:`" for name in Recipe.model_fields)
        raise RecipeError(f"{path} holds {found}; expected a recipe, a mapping with the blocks {blocks}.")
    return draft


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"  There is no folder {path.parent} either."
    files = {file.name: file for file in sorted(path.parent.iterdir()) if file.suffix in (".yaml", ".yml")}
    near = get_close_matches(path.name, files, n=3) or [name for name in files if name.startswith(path.stem)][:3]
    return f"  Did you mean {' or '.join(str(files[name]) for name in near)}?" if near else ""


def _take_owned(given: dict[str, Any]) -> dict[Place, str]:
    """Take out what `training` would refuse as a whole, so that its other fields are looked at too."""
    training = given.get("training")
    training = training if isinstance(training, dict) else {}
    owned = [name for name in training if name in OWNED]
    for name in owned:
        del training[name]
    return {("training", name): refuse_owned(name) for name in owned}


def _find_surrogates(value: Any, place: Place = ()) -> dict[Place, str]:
    """The texts that can't be written: bytes of a command line that are no UTF-8, or halves of characters."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        return {at: message for key, each in inside for at, message in _find_surrogates(each, (*place, key)).items()}
    if isinstance(value, str) and SURROGATE.search(value):
        return {place: f"holds half of a surrogate pair, which is no character: {ascii(value)[:60]}. Expected Unicode."}
    return {}


def _check_metrics(given: dict[str, Any]) -> dict[Place, str]:
    plan = given.get("evaluation")
    plan = plan if isinstance(plan, dict) else {}
    metrics = plan.get("metrics")
    named: dict[Place, Any] = {("evaluation", "best"): plan.get("best")}
    named |= {("evaluation", "metrics", i): name for i, name in enumerate(metrics if isinstance(metrics, list) else [])}
    ours = {place: name for place, name in named.items() if isinstance(name, str) and not name.startswith(FOREIGN)}
    unknown = {place: name for place, name in ours.items() if name not in list_metrics()}
    return {place: _explain_metric(name) for place, name in unknown.items()}


def _explain_metric(name: str) -> str:
    hint = suggest(nearest(name, list_metrics())) or f" The metrics are {', '.join(list_metrics())}."
    return f"must be a metric; got '{name}'.{hint}"


def _line(draft: Document, place: Place) -> int:
    """The line of a place, or of the block that should hold it; the file's top otherwise."""
    top = 1 if draft.lines else NOWHERE
    return next((draft.lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in draft.lines), top)


def _is_moot(draft: Document, place: Place) -> bool:
    """Whether the reader refused what stands there already, or a merge key that may have brought it."""
    refused = {problem.place for problem in draft.refused}
    return place in refused or (place not in draft.lines and (*place[:-1], "<<") in refused)


def _list_problems(path: str, problems: list[Problem]) -> str:
    problems, called = sorted(problems, key=lambda problem: problem.line), {OVERRIDE: "override", NOWHERE: "in it"}
    rows = [
        (called.get(problem.line, f"line {problem.line}"), show_place(problem.place), problem.message) for problem in problems
    ]
    lines, places = (max(len(row[column]) for row in rows) for column in (0, 1))
    listed = "\n".join(f"  {line:{lines}}  {place:{places}}  {message}" for line, place, message in rows)
    count = f"{len(rows)} problem{'s' if len(rows) > 1 else ''}"
    return f"{path} is not a valid recipe ({count}):\n\n{listed}"


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back as an equal one and that trains alike.

    Defaults are written out, but for fields of `training` that are left to the method, whatever its release says of
    them for so many rows.
    """
    written = _plain(recipe)
    left = {*recipe.method.training_defaults, *LENGTH} - recipe.training.model_fields_set
    written["training"] = {name: value for name, value in written["training"].items() if name not in left}
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = False, sys.maxsize
    # ruamel writes these line ends as they are and reads them back as spaces; escaped they survive.
    yaml.allow_unicode = not re.search("[\x85\u2028\u2029]", json.dumps(written, ensure_ascii=False))
    yaml.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    yaml.dump(written, text)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Dicts, lists and scalars; without fields that are None by default."""
    if isinstance(value, Block):
        fields = type(value).model_fields
        return {
            name: _plain(item)
            for name, item in value
            if not (item is None and not fields[name].is_required() and fields[name].default is None)
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
