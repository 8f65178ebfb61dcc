"""Figures as SVG text that stands inside a page: nothing fetched, no script, and the page's own colours, light or dark."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

INK, MODEL, OTHER = "#010101", "#020202", "#030303"
COLOURS = {INK: "currentColor", MODEL: "var(--accent, #2563c9)", OTHER: "var(--quiet, #737d8c)"}
"""What is drawn in a colour on the left is the page's on the right."""
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 4.6
"""Inches: narrow, so that words stay readable where a phone shrinks the figure."""
POINTS = 300
"""A longer curve is drawn as the means of this many stretches."""
ROUND = [1, 2, 5, 10]
"""Ticks stand at multiples of these."""


def draw_run(facts: dict[str, Any], metric: str) -> dict[str, Any]:
    """The figures of a report: `scores`, of this model and the baselines on test, and `phases`, a list for each phase."""
    scores = {"this model": facts["metrics"]["test"][metric]}
    scores |= {name: splits["test"][metric] for name, splits in facts["baselines"].items()}
    phases = []
    for number, curve in enumerate(facts["training"]["curves"]):
        drawn = [draw_losses(f"losses{number}", curve["losses"])] if curve["losses"] else []
        if curve["evaluations"]:
            measured = [name for name in curve["evaluations"][0] if name != "step"]
            shown = metric if metric in measured else measured[0]
            drawn.append(draw_evaluations(f"metric{number}", shown, curve["evaluations"], curve["best_step"]))
        phases.append(drawn)
    return {"scores": draw_scores("scores", metric, scores), "phases": phases}


def draw_scores(name: str, metric: str, scores: Mapping[str, Mapping[str, float]]) -> Markup:
    """One dot and 95% interval per answerer, the first the model's own; a score that is undefined has none."""
    with style.context(["default", STYLE, {"svg.hashsalt": name}]):
        figure, axes = _axes(0.34 * len(scores) + 0.62)
        for place, score in enumerate(scores.values()):
            value, low, high = (score[part] for part in ("value", "low", "high"))
            if not np.isfinite(value):
                continue
            colour = OTHER if place else MODEL
            axes.hlines(place, low, high, color=colour, linewidth=2.5, alpha=0.55)
            axes.plot([value], [place], "o", color=colour, markersize=6.5)
            above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{value:.3f}", (value, place), color=colour, **above)
            if not place:
                axes.axvline(value, color=MODEL, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)
        axes.set_yticks(range(len(scores)), [_shorten(answerer) for answerer in scores])
        axes.set_ylim(len(scores) - 0.5, -0.75)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        defined = any(np.isfinite(score["value"]) for score in scores.values())
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND) if defined else NullLocator())
        axes.set_xlabel(metric if defined else f"{metric}: undefined")
        return _svg(figure, name, f"{metric} of {', '.join(scores)}, with 95% intervals")


def draw_losses(name: str, losses: Sequence[float]) -> Markup:
    """The loss of each optimizer step, thin, and its running mean."""
    values = np.where(np.isfinite(losses), losses, np.nan)
    cuts = np.array_split(np.arange(len(values)), min(len(values), POINTS))
    steps = np.array([cut.mean() + 1 for cut in cuts])
    means = np.array([values[cut].mean() for cut in cuts])
    window = max(1, len(means) // 20)
    smooth = np.convolve(means, np.full(window, 1 / window), mode="valid")
    middle = np.convolve(steps, np.full(window, 1 / window), mode="valid")
    with style.context(["default", STYLE, {"svg.hashsalt": name}]):
        figure, axes = _axes(2.5)
        axes.plot(steps, means, color=OTHER, linewidth=0.8, alpha=0.6)
        axes.plot(middle, smooth, color=MODEL, linewidth=1.8, marker="" if len(smooth) > 1 else "o")
        _count_steps(axes, "loss of the step")
        return _svg(figure, name, f"training loss over {len(values)} steps")


def draw_evaluations(name: str, metric: str, evaluations: Sequence[Mapping[str, Any]], best_step: int | None) -> Markup:
    """A validation metric after each evaluation, with a ring around the one whose weights were saved."""
    steps = [evaluation["step"] for evaluation in evaluations]
    values = np.array([evaluation[metric] for evaluation in evaluations], dtype=float)
    values[~np.isfinite(values)] = np.nan
    with style.context(["default", STYLE, {"svg.hashsalt": name}]):
        figure, axes = _axes(2.5)
        axes.plot(steps, values, "o-", color=MODEL, linewidth=1.6, markersize=3.5)
        if best_step is not None and best_step in steps:
            best_value = values[steps.index(best_step)]
            axes.plot([best_step], [best_value], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
        axes.margins(y=0.12)
        _count_steps(axes, f"validation {metric}")
        return _svg(figure, name, f"validation {metric} after each of {len(steps)} evaluations")


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _count_steps(axes: Axes, what: str) -> None:
    defined = bool(np.isfinite(axes.dataLim.y1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND) if defined else NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND) if defined else NullLocator())
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_xlabel("step" if defined else "undefined at every step")
    axes.set_ylabel(_shorten(what))


def _shorten(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:27]}…"


def _svg(figure: Figure, name: str, says: str) -> Markup:
    """The figure's SVG without its prologue; ids begin with `name`, so that several figures share a page."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", svg, count=2, flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(says)}" ', 1)
    return Markup(re.sub("|".join(COLOURS), lambda found: COLOURS[found.group()], svg))
