"""Fine-tune a pretrained checkpoint on a labelled task, by recipe: right, fast, and with an honest report.

The names here are imported when they are first used, so that `import hf_sft` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_sft.aids import Aid as Aid
    from hf_sft.errors import CheckpointError as CheckpointError
    from hf_sft.errors import DataError as DataError
    from hf_sft.errors import HfSftError as HfSftError
    from hf_sft.errors import HubError as HubError
    from hf_sft.errors import RecipeError as RecipeError
    from hf_sft.hub.publish import publish as publish
    from hf_sft.methods import Method as Method
    from hf_sft.methods import Phase as Phase
    from hf_sft.recipe.recipe import Recipe as Recipe
    from hf_sft.recipe.recipe import load_recipe as load_recipe
    from hf_sft.reports.report import Report as Report
    from hf_sft.runs.check import check as check
    from hf_sft.runs.evaluate import evaluate as evaluate
    from hf_sft.runs.predict import predict as predict
    from hf_sft.runs.train import build_trainer as build_trainer
    from hf_sft.runs.train import train as train
    from hf_sft.tasks import Labels as Labels
    from hf_sft.tasks import Task as Task

PUBLIC = {
    "Aid": "aids",
    "CheckpointError": "errors",
    "DataError": "errors",
    "HfSftError": "errors",
    "HubError": "errors",
    "Labels": "tasks",
    "Method": "methods",
    "Phase": "methods",
    "Recipe": "recipe.recipe",
    "RecipeError": "errors",
    "Report": "reports.report",
    "Task": "tasks",
    "build_trainer": "runs.train",
    "check": "runs.check",
    "evaluate": "runs.evaluate",
    "load_recipe": "recipe.recipe",
    "predict": "runs.predict",
    "publish": "hub.publish",
    "train": "runs.train",
}
"""Each public name and the module it lives in; mirrored above for type checkers, and a test compares the two."""

__all__ = list(PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(f"hf_sft.{PUBLIC[name]}"), name)
    raise AttributeError(f"module `hf_sft` has no attribute `{name}`")


def __dir__() -> list[str]:
    return [*globals(), *PUBLIC]
