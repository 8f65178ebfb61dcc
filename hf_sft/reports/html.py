"""A finished run to read: report.html, section by section, and a model card for the Hub."""

import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from hf_sft.metrics import list_metrics
from hf_sft.redaction import hide_home
from hf_sft.reports.model_card import CARD, FILTERS, PAGE, front_matter, hub_id, local_name
from hf_sft.reports.sections import Code, Figures, Lines, Pairs, Quote, Quotes, Section, Table, Text

SETTINGS = (
    *("batch_size", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("optim", "weight_decay", "max_grad_norm"),
)
"""What the card says of `training`; the recipe below it has all."""
MOST_CLASSES, MOST_CONFUSIONS = 200, 12
"""Rows of the page's tables."""


def write_pages(
    into: Path,
    folder: Path,
    recipe_text: str,
    facts: dict[str, Any],
    measured: dict[str, Any],
    mistakes: list[dict[str, Any]],
    samples: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Writes README.md and report.html of the run in `folder` to another folder.

    `facts` is report.json's content; `measured` the same with its undefined numbers.
    """
    from hf_sft.reports.plots import draw_run  # matplotlib takes half a second, which would pass before the first step

    context, templates = _say(folder, recipe_text, facts), _templates()
    card = templates.get_template("card.md").render(context, front_matter=front_matter(context).to_yaml())
    (into / CARD).write_text(card, encoding="utf-8")
    plots = draw_run(measured, context["best"])
    sections = [
        *_training(facts, plots["phases"]),
        *_classes(facts),
        *_mistakes(mistakes),
        *_samples(samples),
        _data(facts, context["data_name"]),
        _cost(facts),
        _environment(facts),
        Section(
            "Run it again", [Code(context["command"]), Text("The recipe, with every default written out:"), Code(recipe_text)]
        ),
    ]
    page = templates.get_template("report.html").render(context, scores=_scores(context, plots["scores"]), sections=sections)
    (into / PAGE).write_text(page, encoding="utf-8")


def say_score(score: dict[str, Any]) -> str:
    """A value with its 95% interval, to three places."""
    if score["value"] is None:
        return "undefined"
    if None in (score["low"], score["high"]):
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} ({score['low']:.3f}–{score['high']:.3f})"


def _say(folder: Path, recipe_text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What the card and the page both say."""
    recipe, metrics, where = facts["recipe"], facts["metrics"], hide_home(str(folder))
    data, training = recipe["data"], recipe["training"]
    best = best_of(facts)
    baselines = [(f"baseline {name}", "test", splits["test"]) for name, splits in facts["baselines"].items()]
    others = [("rows not trained on", split, scores) for split, scores in facts["unseen"].items()]
    others += [("this model", split, scores) for split, scores in metrics.items() if split != "test"]
    processes = facts["environment"]["processes"]
    launch = f"accelerate launch --num_processes {processes} -m hf_sft" if processes > 1 else "hf-sft"
    again = f"train {shlex.quote(f'{where}/recipe.yaml')} {shlex.quote(f'output.folder={where}_again')}"
    settings = {name: training[name] for name in SETTINGS if name in training}
    settings |= {f"method.{name}": value for name, value in recipe["method"].items() if name != "type"}
    settings |= {"aids": ", ".join(aid["type"] for aid in recipe.get("aids", ())) or "none", "seed": recipe["seed"]}
    dataset = hub_id(data["dataset"], is_data=True)
    return {
        "name": recipe["output"].get("hub") or folder.absolute().name,
        "facts": facts,
        "recipe_text": recipe_text,
        "folder": where,
        "quoted_folder": shlex.quote(where),
        "command": f"{launch} {again}",
        "settings": settings,
        "dataset": dataset,
        "data_name": " ".join((dataset or local_name(data), *filter(None, [data.get("config")]))),
        "base_model": hub_id(facts["checkpoint"]["name"]),
        "best": best,
        "rival": say_rival(facts, best),
        "certified": say_certificate(facts["certificate"]),
        "table": [("this model", "test", metrics["test"]), *baselines, *others],
    }


def best_of(facts: dict[str, Any]) -> str:
    """The metric that chose the weights to keep, or the first."""
    return facts["recipe"]["evaluation"].get("best") or next(iter(facts["metrics"]["test"]))


def say_rival(facts: dict[str, Any], metric: str) -> str | None:
    """How far this model is from the best baseline on test, and whether these rows can tell; None without one."""
    sign = 1 if all(each.greater_is_better for each in list_metrics().get(metric, ())) else -1
    gaps = {name: splits["test"][metric] for name, splits in facts["gaps"].items()}
    gaps = {name: gap for name, gap in gaps.items() if None not in gap.values()}
    if not gaps:
        return None
    name = min(gaps, key=lambda name: sign * gaps[name]["value"])
    gap = gaps[name]
    interval = f"{gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
    if gap["low"] <= 0 <= gap["high"]:
        verdict = "these rows can't tell the two apart"
    else:
        verdict = "better" if sign * gap["value"] > 0 else "worse"
    return f"{metric} {interval} against the best baseline, {name}: {verdict}."


def say_certificate(certificate: dict[str, Any]) -> str:
    """The result of the reload check in a sentence: passed, failed, or not done and why."""
    if "not_done" in certificate:
        return f"Reload check: NOT DONE ({certificate['not_done']}).  To do it: `hf-sft certify RUN`."
    rows, apart, bound = (certificate[name] for name in ("rows", "largest_difference", "bound"))
    seen = "logits are not finite" if apart is None else f"logits differ by at most {apart:.1e}, rounding allows {bound:.1e}"
    passed = certificate["within"]
    return (
        f"Reload check: {'PASSED' if passed else 'FAILED'}.  Loaded by plain transformers in a new process, the saved model "
        f"{'answers' if passed else 'does not answer'} {rows} rows of test as the trained one did ({seen})."
    )


def _scores(context: dict[str, Any], plot: Any) -> list[Any]:
    """The figure and the table that stand at the top."""
    facts, names = context["facts"], list(context["facts"]["metrics"]["test"])
    chosen = any(phase["best_step"] for phase in facts["training"]["phases"])
    caption = "Value (95% bootstrap interval over rows)"
    rows = [[answerer, split, *(say_score(scores[name]) for name in names)] for answerer, split, scores in context["table"]]
    why = "; the validation split chose the step that was kept" if chosen else ""
    return [Figures([plot]), Table(("", "split", *names), rows, 2, f"{caption}{why}", marked=1)]


def _training(facts: dict[str, Any], plots: list[list[Any]]) -> list[Section]:
    phases = facts["training"]["phases"]
    sections = []
    for phase, drawn in zip(phases, plots, strict=True):
        words = [f"{phase['steps']:,} steps."]
        if phase["best_step"]:
            words.append(f"The ring marks step {phase['best_step']:,}, whose weights were kept.")
        if len(drawn) < 2:
            words.append("The validation split was not scored during this phase.")
        title = "Training curves" if len(phases) == 1 else f"Training curves of phase {phase['name']}"
        sections.append(Section(title, [Figures(drawn), Text(" ".join(words))]))
    return sections


def _classes(facts: dict[str, Any]) -> list[Section]:
    counted, rates = facts["answers"]["counted"], ("f1", "precision", "recall")
    table, wrong = facts["per_class"].get("test", []), facts["confusions"].get("test", [])
    sections = []
    if table:
        worst = sorted(table, key=lambda row: row["f1"])[:MOST_CLASSES]
        rows = [[row["label"], *(f"{row[rate]:.3f}" for rate in rates), f"{row[counted]:,}"] for row in worst]
        few = f"; the lowest {MOST_CLASSES} of {len(table)} classes" if len(table) > MOST_CLASSES else ""
        heads = ("class", "F1", "precision", "recall", counted)
        sections.append(Section("By class, on test", [Table(heads, rows, caption=f"Lowest F1 first{few}")]))
    if wrong:
        rows = [[row["reference"], row["prediction"], f"{row[counted]:,}"] for row in wrong[:MOST_CONFUSIONS]]
        sections.append(Section("Most frequent confusions, on test", [Table(("reference", "prediction", counted), rows, 2)]))
    return sections


def _mistakes(mistakes: list[dict[str, Any]]) -> list[Section]:
    quotes = [
        Quote(
            f"row {each['row']}:",
            each["prediction"],
            f"{each['scored']} {each['score']:.3f}; the reference is {each['reference']}",
            each["text"] and _cut(each["text"]),
            each.get("picture"),
        )
        for each in mistakes
    ]
    doubt = Text("What looks like a mistake of the model is sometimes one of the data: a wrong label.")
    return [Section("Worst mistakes, on test", [Quotes(quotes), doubt])] if quotes else []


def _samples(samples: Sequence[tuple[str, str, str]]) -> list[Section]:
    quotes = [
        Quote("", _cut(prompt), "", f"before: {_cut(before)}\nafter: {_cut(after)}") for prompt, before, after in samples
    ]
    words = Text("Prompts from the test split; the likeliest token was taken each time.")
    return [Section("What it writes, before and after training", [Quotes(quotes), words])] if quotes else []


def _data(facts: dict[str, Any], name: str) -> Section:
    data = facts["data"]
    pairs = {"data set": name, "rows": ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())}
    pairs |= {"classes": f"{len(data['labels']):,}"} if data["labels"] else {}
    pairs["cut"] = f"{data['truncated_share']:.1%} of the rows are longer than the model is shown"
    return Section("Data", [Pairs({**pairs, "fingerprint": data["fingerprint"]}), Lines(data["warnings"])])


def _cost(facts: dict[str, Any]) -> Section:
    heads = ("phase", "steps", "seconds", "examples/s", "tokens/s", "padding", "peak memory")
    phases, parameters = facts["training"]["phases"], facts["parameters"]
    rows = [
        [
            phase["name"],
            f"{phase['steps']:,}",
            f"{phase['seconds']:.1f}",
            f"{phase['examples_per_second']:,.0f}",
            f"{phase['tokens_per_second']:,.0f}",
            f"{phase['padding_share']:.1%}",
            f"{phase['peak_memory_bytes'] / 2**30:.2f} GiB",
        ]
        for phase in phases
    ]
    moved = f"{parameters['trainable']:,} of {parameters['total']:,} weights moved; {len(parameters['new']):,} tensors are new"
    stored = "".join(
        " The body ran once, and the head was trained on what it gave."
        if phase["stored_features"]
        else f" The lowest {phase['stored_layers']} layers ran once, and what is above them was trained on what they gave."
        for phase in phases
        if phase["stored_features"] or phase["stored_layers"]
    )
    trained = Text(f"{moved}, since the checkpoint did not bring them.{stored}")
    return Section("Cost", [Table(heads, rows), trained, Text(say_certificate(facts["certificate"]))])


def _environment(facts: dict[str, Any]) -> Section:
    machine = facts["environment"]
    processes = f"{machine['processes']} process{'es' if machine['processes'] > 1 else ''}"
    pairs = {
        "device": f"{machine['device']}, {processes}, {machine['threads']} threads",
        "precision": machine["precision"],
        "micro-batch": f"up to {machine['micro_batch_tokens']:,} tokens",
        "python": machine["python"],
    }
    return Section("Environment", [Pairs(pairs | {name: version for name, version in machine["packages"].items() if version})])


def _cut(text: str) -> str:
    text = re.sub(r"\s*\n\s*", "\n", text.strip())
    return text if len(text) <= 300 else f"{text[:299]}…"


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("hf_sft.reports", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"interval": say_score, **FILTERS}
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return templates
