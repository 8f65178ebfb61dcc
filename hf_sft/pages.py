"""A finished run to read: report.html, and a model card for the Hub."""

import html
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from hf_sft.metrics import list_metrics
from hf_sft.plots import draw_run
from hf_sft.sources import FILES

SETTINGS = (
    *("batch_size", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("optim", "weight_decay", "max_grad_norm"),
)
"""What the card says of `training`; the recipe below it has all."""


def write_pages(
    folder: Path, recipe_text: str, facts: dict[str, Any], measured: dict[str, Any], mistakes: list[dict[str, Any]]
) -> None:
    """Writes README.md and report.html. `facts` is report.json's content; `measured` the same with its undefined numbers."""
    said, templates = _say(folder, recipe_text, facts), _templates()
    card = templates.get_template("card.md").render(said, front_matter=_front_matter(said).to_yaml())
    (folder / "README.md").write_text(card, encoding="utf-8")
    shown = [{**mistake, "text": mistake["text"] and _cut(mistake["text"])} for mistake in mistakes]
    page = templates.get_template("report.html").render(said, plots=draw_run(measured, said["best"]), mistakes=shown)
    (folder / "report.html").write_text(page, encoding="utf-8")


def say_score(score: dict[str, Any]) -> str:
    """A value with its 95% interval, to three places."""
    if score["value"] is None:
        return "undefined"
    if None in (score["low"], score["high"]):
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} ({score['low']:.3f}–{score['high']:.3f})"


def _say(folder: Path, recipe_text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What the card and the page both say."""
    recipe, metrics = facts["recipe"], facts["metrics"]
    data, training = recipe["data"], recipe["training"]
    best = best_of(facts)
    baselines = [(f"baseline {name}", "test", splits["test"]) for name, splits in facts["baselines"].items()]
    others = [("rows not in train", split, scores) for split, scores in facts["unseen"].items()]
    others += [("this model", split, scores) for split, scores in metrics.items() if split != "test"]
    processes = facts["environment"]["processes"]
    launch = f"accelerate launch --num_processes {processes} -m hf_sft" if processes > 1 else "hf-sft"
    again = f"train {shlex.quote(f'{folder}/recipe.yaml')} {shlex.quote(f'output.folder={folder}_again')}"
    settings = {name: training[name] for name in SETTINGS if name in training}
    settings |= {f"method.{name}": value for name, value in recipe["method"].items() if name != "type"}
    settings |= {"aids": ", ".join(aid["type"] for aid in recipe.get("aids", ())) or "none", "seed": recipe["seed"]}
    dataset = _hub_id(data["dataset"], is_data=True)
    return {
        "name": recipe["output"].get("hub") or folder.absolute().name,
        "facts": facts,
        "recipe_text": recipe_text,
        "folder": str(folder),
        "quoted_folder": shlex.quote(str(folder)),
        "command": f"{launch} {again}",
        "settings": settings,
        "dataset": dataset,
        "data_name": " ".join((dataset or _local_name(data), *filter(None, [data.get("config")]))),
        "base_model": _hub_id(facts["checkpoint"]["name"]),
        "best": best,
        "rival": say_rival(facts, best),
        "table": [("this model", "test", metrics["test"]), *baselines, *others],
        "per_class": facts["per_class"].get("test", []),
        "confusions": facts["confusions"].get("test", []),
        "counted": facts["answers"]["counted"],
    }


def _hub_id(name: str, is_data: bool = False) -> str | None:
    """The name, if it is a repository's on the Hub: neither a folder, nor in a package, nor a kind of file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    elsewhere = Path(name).is_dir() or (is_data and name in (*FILES, "textfolder", "imagefolder"))
    return None if elsewhere else name


def _local_name(data: dict[str, Any]) -> str:
    """Where rows of one's own come from: the package's folder, or a folder's or file's last name."""
    where = data.get("data_dir") or data.get("data_files") or data["dataset"]
    if not isinstance(where, str):
        return data["dataset"]
    return where.removeprefix("package:") if where.startswith("package:") else Path(where).name


def best_of(facts: dict[str, Any]) -> str:
    """The metric that chose the weights to keep, or the first."""
    return facts["recipe"]["evaluation"].get("best") or next(iter(facts["metrics"]["test"]))


def say_rival(facts: dict[str, Any], metric: str) -> str | None:
    """How far this model is from the best baseline on test, and whether these rows can tell; None without one."""
    sign = 1 if metric not in list_metrics() or list_metrics()[metric].greater_is_better else -1
    gaps = {name: splits["test"][metric] for name, splits in facts["gaps"].items()}
    gaps = {name: gap for name, gap in gaps.items() if None not in gap.values()}
    if not gaps:
        return None
    name = min(gaps, key=lambda name: sign * gaps[name]["value"])
    gap = gaps[name]
    interval = f"{gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
    if gap["low"] <= 0 <= gap["high"]:
        told = "these rows can't tell the two apart"
    else:
        told = "better" if sign * gap["value"] > 0 else "worse"
    return f"{metric} {interval} against the best baseline, {name}: {told}."


def _front_matter(said: dict[str, Any]) -> ModelCardData:
    """The card's metadata; a value that is undefined is not claimed."""
    facts, data = said["facts"], said["facts"]["recipe"]["data"]
    split = data.get("splits", {}).get("test")
    scores = {name: score["value"] for name, score in facts["metrics"]["test"].items()}
    results = [
        EvalResult(
            task_type=facts["pipeline_tag"],
            dataset_type=said["dataset"] or _local_name(data),
            dataset_name=said["data_name"],
            dataset_config=data.get("config"),
            dataset_split=split if isinstance(split, str) else "test",
            dataset_revision=data.get("revision"),
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in scores.items()
        if value is not None
    ]
    return ModelCardData(
        library_name="peft" if facts["saved"] == "adapter" else "transformers",
        pipeline_tag=facts["pipeline_tag"],
        base_model=said["base_model"],
        datasets=[said["dataset"]] if said["dataset"] else None,
        tags=["hf_sft"],
        model_name=said["name"] if results else None,
        eval_results=results or None,
    )


def _cut(text: str) -> str:
    text = re.sub(r"\s*\n\s*", "\n", text.strip())
    return text if len(text) <= 300 else f"{text[:299]}…"


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("hf_sft", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"interval": say_score, "prose": _prose, "note": _note, "code": _code, "fenced": _fenced}
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return templates


def _prose(text: Any) -> str:
    """Words in Markdown that mean nothing but themselves: no HTML, no emphasis, no links, one line."""
    return re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _note(text: str) -> str:
    """Prose with words of code between backticks, as our notes are written."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a name of the data has one itself
        return _prose(text.replace("`", "'"))
    return "".join(_code(part) if i % 2 else _spaced(part) for i, part in enumerate(parts))


def _spaced(text: str) -> str:
    """Prose that stands between others: its outer spaces count."""
    before, after = " " * text.startswith(" "), " " * text.endswith(" ")
    return f"{before}{_prose(text)}{after}" if text.strip() else " " * bool(text)


def _code(text: Any) -> str:
    """The words as code in a line of Markdown, whatever backticks they hold."""
    words = " ".join(str(text).split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", words)), default=0) + 1)
    return f"{fence} {words} {fence}" if "`" in words else f"{fence}{words}{fence}"


def _fenced(text: str, language: str) -> str:
    """The lines as a block of code, whatever backticks they hold."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
