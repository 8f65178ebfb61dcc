"""report.html: it fetches nothing, runs nothing, and shows scores, curves and mistakes."""

from html.parser import HTMLParser

import pytest

from hf_sft.reports.plots import draw_evaluations, draw_losses, draw_scores
from hf_sft.reports.report import Report
from tests.unit.reports.report_cases import HOSTILE, _odd_method, card_of, finished_run, shown_on_console

PLAIN = ("business", "entertainment", "politics", "sports", "tech")

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """The tags, attributes and words of a page; its tags must close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(report: Report) -> Page:
    return Page((report.folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_runs_nothing_whatever_the_data_says(tmp_path):
    data = {"dataset": HOSTILE[2], "config": HOSTILE[0]}
    page = page_of(finished_run(tmp_path / "run", HOSTILE, HOSTILE[2], data, notes=HOSTILE, method=_odd_method()))
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form", "a", "image"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "action", "data")]
    assert links and all(value and value.startswith("#") for value in links)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    styles = [value or "" for name, value in page.attributes if name == "style"]
    assert not any("//" in value or "@import" in value for value in styles)
    # What the data says is there to be read.
    words = "".join(page.words)
    assert HOSTILE[0] in words and "onerror=alert(2)" in words


def test_the_page_holds_the_scores_and_both_curves_as_figures_with_ids_of_their_own(tmp_path):
    report = finished_run(tmp_path / "run")
    page = page_of(report)
    figures = [value or "" for name, value in page.attributes if name == "aria-label"]
    assert "accuracy of this model, majority, tfidf_logreg, with 95% intervals" in figures
    assert "training loss over 56 steps" in figures and "validation accuracy after each of 8 evaluations" in figures
    assert page.tags.count("svg") == 3
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    linked = {(value or "").removeprefix("#") for name, value in page.attributes if name == "href"}
    assert linked <= set(ids)
    assert (report.folder / "report.html").stat().st_size < 1_000_000


def test_the_page_shows_the_ten_surest_mistakes_with_their_texts_cut(tmp_path):
    report = finished_run(tmp_path / "run")
    words = page_of(report).words
    shown = [word for word in words if word.startswith("A story.")]
    assert [int(word.split()[2]) for word in shown] == [75, 70, 65, 60, 55, 50, 45, 40, 35, 30]
    assert all(len(word) == 300 and word.endswith("…") for word in shown)
    without = page_of(finished_run(tmp_path / "other", texts=False)).words
    assert not any("A story." in word for word in without) and "0.875" in "".join(without)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_the_page_shows_mistakes_of_other_kinds_of_labels(tmp_path, kind):
    report = finished_run(tmp_path / "run", None if kind == "regression" else PLAIN, problem_type=kind)
    words = "".join(page_of(report).words)
    # A label with a score of 0.01 that was there all the same is as sure a mistake in row 0 as in any other.
    first, sure = ("A story. 75", "1.938") if kind == "regression" else ("A story. 0", "0.990")
    assert first in words and sure in words and "By class" not in words
    assert ("off by" in words) == (kind == "regression")


def test_scores_that_are_undefined_are_said_to_be(tmp_path):
    report = finished_run(tmp_path / "run", undefined=True)
    assert "undefined" in page_of(report).words
    card = card_of(report)
    assert card.data.eval_results is None and "| undefined | undefined |" in card.text
    assert "undefined" in shown_on_console(report)


def test_a_phase_without_evaluations_says_so(tmp_path):
    page = page_of(finished_run(tmp_path / "run", evaluated=False))
    assert page.tags.count("svg") == 2
    assert "was not scored during this phase" in "".join(page.words)


def test_figures_are_the_same_text_for_the_same_numbers_and_stand_in_the_page_s_colours():
    scores = {"this model": {"value": 0.5, "low": 0.4, "high": 0.6}}
    evaluations = [{"step": 1, "f1": 0.5}]
    for _ in range(2):
        drawn = (draw_scores("a", "f1", scores), draw_losses("b", [1.0]), draw_evaluations("c", "f1", evaluations, 1))
        again = (draw_scores("a", "f1", scores), draw_losses("b", [1.0]), draw_evaluations("c", "f1", evaluations, 1))
        assert drawn == again
    for svg in drawn:
        assert svg.startswith("<svg ") and "currentColor" in svg and "var(--accent" in svg
        assert "#0101" not in svg and "<metadata" not in svg and "<style" not in svg


def test_a_long_curve_is_drawn_small():
    losses = [5 / (1 + i / 1000) + (i % 13) / 10 for i in range(100_000)]
    assert len(draw_losses("losses", losses)) < 40_000
