"""The content of report.json."""

from typing import Any

from hf_sft.evaluation.evaluate import Evaluation
from hf_sft.models.checkpoint import hash_weights
from hf_sft.redaction import hide_secrets, in_all
from hf_sft.reports.report import gather_facts
from hf_sft.runs.prepare import Prepared
from hf_sft.trainer.history import TrainingCurve


def collect_facts(
    prepared: Prepared, curves: list[TrainingCurve], evaluations: list[Evaluation], certified: dict[str, Any]
) -> dict[str, Any]:
    """The content of report.json."""
    recipe = prepared.recipe
    facts = gather_facts(
        recipe.absolute().model_dump(mode="json"),
        prepared.loaded,
        prepared.splits,
        prepared.examples,
        curves,
        evaluations,
        prepared.machine,
        certified,
    )
    facts["given"] = prepared.given.absolute().model_dump(mode="json")
    facts["names"] = _names(facts["recipe"], recipe.model_dump(mode="json"))
    facts["checkpoint"]["name"] = recipe.model.name
    if not getattr(recipe.method, "merge", True):  # an adapter, which goes with these weights alone
        facts["checkpoint"]["weights"] = hash_weights(recipe.model)
    facts["training"]["changes"] = list(prepared.changes)
    for part in ("given", "names", "recipe", "checkpoint"):
        facts[part] = in_all(facts[part], hide_secrets)
    facts["data"]["warnings"] = in_all(facts["data"]["warnings"], hide_secrets)
    return facts


def _names(absolute: Any, named: Any) -> dict[str, str]:
    """The recipe's own spelling of each absolute path in the resolved recipe."""
    if isinstance(named, dict):
        return {path: name for key in named for path, name in _names(absolute[key], named[key]).items()}
    if isinstance(named, list):
        return {path: name for pair in zip(absolute, named, strict=True) for path, name in _names(*pair).items()}
    return {absolute: named} if absolute != named else {}
