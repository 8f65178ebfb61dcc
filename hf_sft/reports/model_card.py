"""What the Hub asks of a model card: its front matter, and words of the data that mean nothing but themselves."""

import html
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2.utils import htmlsafe_json_dumps

from hf_sft.data.data_source import FILES

CARD, PAGE = "README.md", "report.html"
"""In a run folder."""


def front_matter(context: dict[str, Any]) -> ModelCardData:
    """The card's metadata; a value that is undefined is not claimed."""
    facts, data = context["facts"], context["facts"]["recipe"]["data"]
    split = data.get("splits", {}).get("test")
    scores = {name: score["value"] for name, score in facts["metrics"]["test"].items()}
    results = [
        EvalResult(
            task_type=facts["pipeline_tag"],
            dataset_type=context["dataset"] or local_name(data),
            dataset_name=context["data_name"],
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
        base_model=context["base_model"],
        base_model_relation=context["base_model"] and ("adapter" if facts["saved"] == "adapter" else "finetune"),
        **facts["checkpoint"]["card"],
        datasets=[context["dataset"]] if context["dataset"] else None,
        tags=["hf_sft"],
        model_name=context["name"] if results else None,
        eval_results=results or None,
    )


def hub_id(name: str, is_data: bool = False) -> str | None:
    """The name, if it is a repository's on the Hub: neither a folder, nor in a package, nor a kind of file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    elsewhere = Path(name).is_dir() or (is_data and name in (*FILES, "textfolder", "imagefolder"))
    return None if elsewhere else name


def address_card(card: str, repo_id: str, base: str | None = None) -> str:
    """A run folder's card, loading from a repository what it loads from the folder; with `base` on top of that one."""
    if base is not None:
        parsed: Any = ModelCard(card, ignore_metadata_errors=True)
        parsed.data.base_model, parsed.data.base_model_relation = base, "adapter"
        card = str(parsed)
    return re.sub(
        r'^run = (expanduser\()?"([^"\\\n]|\\.)*"\)?', lambda _: f"run = {json.dumps(repo_id)}", card, flags=re.MULTILINE
    )


def local_name(data: dict[str, Any]) -> str:
    """Where rows of one's own come from: the package's folder, or a folder's or file's last name."""
    where = data.get("data_dir") or data.get("data_files") or data["dataset"]
    if not isinstance(where, str):
        return data["dataset"]
    return where.removeprefix("package:") if where.startswith("package:") else Path(where).name


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


def _path(text: str) -> str:
    """A path as Python code."""
    return f"expanduser({htmlsafe_json_dumps(text)})" if text.startswith("~") else htmlsafe_json_dumps(text)


FILTERS = {"path": _path, "prose": _prose, "note": _note, "code": _code, "fenced": _fenced}
"""What the card's template calls."""
