"""The ends of a run and of a command: odd cards and paths, pipes, wide tables, templates that never end; no tracebacks."""

import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import hf_sft
from hf_sft.cli import app
from hf_sft.data.data_source import DataSource
from hf_sft.data.splits import load_splits
from hf_sft.models.checkpoint import Checkpoint, read_card
from hf_sft.storage.package_paths import path_of
from hf_sft.tasks.common.chat_templates import ChatTemplate
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import processes, tiny

SINGLE = "single_label_classification"


@pytest.fixture(scope="module")
def finished(finished_run) -> Path:
    return finished_run()


def command(*words: Any, folder: Path | None = None, shell: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
    """`hf-sft` in a process of its own; `shell` is what stands behind it on a command line."""
    line = [sys.executable, "-m", "hf_sft", *map(str, words)]
    given: Any = ["bash", "-c", f'"$@" {shell}', "bash", *line] if shell else line
    return subprocess.run(given, capture_output=True, text=True, check=False, timeout=processes.LONG, cwd=folder, **how)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("card", "kept"),
    [
        ("license_name: 2024-01-01\nlicense: mit", {"license": "mit"}),
        ("license: [mit, 2024-01-01]\nlanguage: en", {"language": "en"}),
        (f"{BOMB}language: *f\nlicense: mit", {"license": "mit"}),
        (f"license: {'x' * 100_000}\nlanguage: [en, de]", {"language": ["en", "de"]}),
        ("license: {a: b}\nlicense_link: 7\nlicense_name: true\nlanguage: ''", {}),
        ("license: " + "[" * 5000 + "]" * 5000, {}),
        ("- license", {}),
    ],
    ids=["date", "date in a list", "aliases", "long", "others", "deep", "a list"],
)
def test_of_a_checkpoints_card_only_short_texts_are_passed_on(card, kept, checkpoints, tmp_path):
    base = Path(shutil.copytree(checkpoints["bert"], tmp_path / "base"))
    (base / "README.md").write_text(f"---\n{card}\n---\n")
    assert read_card(Checkpoint(checkpoint=str(base))) == kept
    if "2024" in card or "*f" in card:
        made = tiny.recipe(base, tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run", training={"max_steps": 1})
        hf_sft.train(made)
        assert (tmp_path / "run" / "README.md").stat().st_size < 20_000
        assert not isinstance(json.loads((tmp_path / "run" / "report.json").read_text())["checkpoint"]["card"], date)


@pytest.mark.parametrize("text", ["word " * 100 + "end.", "x" * 5000 + ".txt", "~nosuchuser/x.csv", "a\n" * 300 + ".png"])
def test_a_text_that_could_be_no_path_is_a_text(text, finished, monkeypatch, capsys):
    from hf_sft.cli import main

    monkeypatch.setattr(sys, "argv", ["hf-sft", "predict", str(finished), text])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["label"]


ODD = ["~nosuchuser/x", "x" * 5000, "x/" * 3000, "nul\0byte", "half\udc80"]


@pytest.mark.parametrize("odd", ODD, ids=["home of nobody", "long", "deep", "zero byte", "half a character"])
@pytest.mark.parametrize(
    "place",
    [
        ("output", "folder"),
        ("model", "checkpoint"),
        ("model", "from_config"),
        ("data", "dataset"),
        ("data", "data_files"),
        ("data", "data_dir"),
        ("task", "text"),
        ("task", "type"),
        ("method", "type"),
        ("evaluation", "best"),
        ("training", "run_name"),
    ],
    ids=".".join,
)
def test_odd_names_get_a_message_wherever_they_stand(place, odd, checkpoints, tmp_path):
    recipe = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run")
    block, field = place
    recipe[block] = {**recipe.get(block, {}), field: odd}
    if place == ("data", "dataset"):
        recipe["data"].pop("data_files", None)
    if place == ("model", "from_config"):
        del recipe["model"]["checkpoint"]
        recipe["model"]["tokenizer"] = str(checkpoints["bert"])
    before = sorted(tmp_path.rglob("*"))
    if place == ("training", "run_name") and "\udc80" not in odd:
        hf_sft.check(recipe)
    elif place == ("output", "folder") and odd.startswith("~"):
        with pytest.raises(hf_sft.RecipeError, match="can't be made"):
            hf_sft.train(recipe)
    else:
        with pytest.raises(hf_sft.HfSftError) as error:
            hf_sft.train(recipe)
        str(error.value).encode()  # a terminal can show it
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("odd", ["~nosuchuser/x", "x" * 5000, "nul\0byte", "half\udc80"], ids=ascii)
def test_a_name_that_leads_nowhere_leads_nowhere(odd):
    assert not path_of(odd).exists() and not path_of(odd).is_dir()


@pytest.mark.parametrize("seed", [4_294_967_296, 4_294_967_295, -1, 10**30])
def test_a_seed_that_no_generator_takes_is_refused(seed, checkpoints, tmp_path):
    recipe = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run")
    with pytest.raises(hf_sft.RecipeError, match=r"seed +must be a whole number of at least 0 and of at most 4000000000; got"):
        hf_sft.train({**recipe, "seed": seed})


def test_the_largest_seed_trains_in_both_phases(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    hf_sft.train({**tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lp_ft"), "seed": 4_000_000_000})


@pytest.mark.parametrize("depth", [100, 3000, 100_000])
@pytest.mark.parametrize("form", ["[", "{a: ", "a:\n"])
def test_yaml_that_is_nested_deeply_is_named(form, depth, tmp_path):
    text = "".join(f"{' ' * i}a:\n" for i in range(min(depth, 3000))) if form == "a:\n" else form * depth
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(hf_sft.RecipeError, match=r"can't be read as YAML: line \d+, column \d+: "):
        hf_sft.load_recipe(tmp_path / "recipe.yaml")


def test_answers_go_through_pipes_and_links_and_leave_them_where_they_are(finished, tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    done = processes.cli("predict", finished, "goal", "--output", pipe)
    reader.join(processes.LONG)
    assert done.returncode == 0, done.stderr
    assert json.loads(read[0])["label"] and pipe.is_fifo()
    (tmp_path / "real.jsonl").write_text("old")
    for name, target in (("link", "real.jsonl"), ("dangling", "new.jsonl")):
        (tmp_path / name).symlink_to(target)
        app(["predict", str(finished), "goal", "--output", str(tmp_path / name)], standalone_mode=False)
        assert (tmp_path / name).is_symlink() and json.loads((tmp_path / target).read_text())["label"]
    (tmp_path / "nowhere").symlink_to(tmp_path / "no" / "folder")
    done = processes.cli("predict", finished, "goal", "--output", tmp_path / "nowhere")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "lies in a folder that is not there" in done.stderr
    app(["predict", str(finished), "goal", "--output", "/dev/null"], standalone_mode=False)
    assert not Path("/dev/null").is_file()
    assert json.loads(processes.cli("predict", finished, "goal", "--output", "/dev/stdout").stdout)["label"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "closed", "status"),
    [(("--input", "-"), "stdin", 2), (("goal",), "stdin", 0), (("goal",), "stdout", 0), (("goal",), "stderr", 0)],
    ids=["no input", "input not needed", "no output", "no errors"],
)
def test_closed_ends_get_no_traceback(words, closed, status, finished):
    done = processes.cli("predict", finished, *words, closed=[closed])
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if status == 2:
        assert "standard input is closed" in done.stderr


def test_a_reader_that_has_enough_and_an_input_that_is_closed_get_no_traceback(finished):
    """By a shell, in processes of their own."""
    enough = "| head -c 10 >&2; exit ${PIPESTATUS[0]}"
    for words, shell, status in ((["goal"] * 3000, enough, 0), (["--input", "-"], "<&-", 2)):
        done = command("predict", finished, *words, shell=shell)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("columns", [300, 3000])
def test_a_table_of_many_columns_is_read_at_once(columns, tmp_path, monkeypatch):
    """One cast of its columns, however many there are: one for each took minutes."""
    casts, cast = [], Dataset.cast
    monkeypatch.setattr(Dataset, "cast", lambda self, *how, **named: casts.append(1) or cast(self, *how, **named))
    names = [f"c{i}" for i in range(columns)]
    lines = [",".join(("text", "label", *names))]
    lines += [",".join((f"a text {i}", "ab"[i % 2], *[str(i * k % 97) for k in range(columns)])) for i in range(60)]
    (tmp_path / "wide.csv").write_text("\n".join(lines) + "\n")
    splits = load_splits(
        DataSource(dataset=str(tmp_path / "wide.csv")), SequenceClassification(type="sequence_classification")
    )
    assert sum(len(rows) for rows in splits.rows.values()) == 60
    assert len(casts) <= 1


def test_only_columns_that_are_read_become_numbers(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "text,label,part,other\n" + "".join(f"text {i},{i % 2},{i % 20},{i}\n" for i in range(40))
    )
    source = DataSource(dataset=str(tmp_path / "rows.csv"), group="part")
    rows = load_splits(source, SequenceClassification(type="sequence_classification")).rows["train"]
    assert (rows.features["part"].dtype, rows.features["other"].dtype) == ("int64", "string")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 2.0 ** 10000 }}", r"breaks the chat template: OverflowError"),
        ("{{ 1 / 0 }}", r"breaks the chat template: ZeroDivisionError"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", r"breaks the chat template: RecursionError"),
        ("{{ messages[7]['content'] + 1 }}", r"chat template"),
        ("{{ messages[0]['content'] + 1 }}", r"breaks the chat template: TypeError"),
        ("{{ 'x' * 10 ** 13 }}", r"breaks the chat template: (MemoryError|OverflowError)"),
        ("{{ 'x' * 30000000 }}", r"becomes 30,000,000 characters by the chat template, of at most 20,000,000"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", r"busy for more than 0\.5 s"),
    ],
)
def test_a_template_that_fails_or_never_ends_is_named(template, message, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sft.tasks.common.chat_templates.SECONDS", 0.5 if "busy" in message else 600)
    processor = AutoTokenizer.from_pretrained(checkpoints["gpt2"])
    with pytest.raises(ValueError, match=message):
        ChatTemplate(processor, template).write([{"role": "user", "content": "goal"}])
    asked = [[{"role": "user", "content": word}, {"role": "assistant", "content": "match"}] for word in tiny.WORDS]
    rows = [{"messages": turns} for turns in asked]
    Dataset.from_list(rows).to_json(tmp_path / "talks.jsonl")
    (tmp_path / "mine.jinja").write_text(template)
    made = tiny.recipe(checkpoints["gpt2"], {}, tmp_path / "run")
    made |= {
        "data": {"dataset": str(tmp_path / "talks.jsonl")},
        "task": {"type": "chat", "chat_template": str(tmp_path / "mine.jinja")},
    }
    with pytest.raises(hf_sft.HfSftError, match="chat template"):
        hf_sft.train(made)


def test_a_template_runs_in_other_threads_too(checkpoints):
    written: list[str] = []
    chat = ChatTemplate(AutoTokenizer.from_pretrained(checkpoints["gpt2"]), "{{ messages[0]['content'] }}")
    thread = threading.Thread(target=lambda: written.append(chat.write([{"role": "user", "content": "goal"}])))
    thread.start()
    thread.join()
    assert written == ["goal"]


def test_without_the_module_resource_a_run_says_what_it_knows(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    made = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run")
    assert hf_sft.train(made).facts["training"]["phases"][0]["peak_memory_bytes"] >= 0


@pytest.mark.parametrize("report", ["{}", "[]", "", '{"task": 1}'])
def test_a_run_with_half_a_report_is_no_run_for_any_verb(report, finished, tmp_path, monkeypatch, capsys):
    from hf_sft.cli import main

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "report.json").write_text(report)
    for words in (["evaluate", run], ["predict", run, "goal"], ["publish", run, "me/x"], ["certify", run]):
        monkeypatch.setattr(sys, "argv", ["hf-sft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "holds no finished run" in capsys.readouterr().err


def test_a_package_that_is_none_is_named(checkpoints, tmp_path):
    for name in ("package:__main__/x", "package:/x", "package:nosuch/x", "package:json/x"):
        made = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run")
        with pytest.raises(hf_sft.HfSftError, match="package"):
            hf_sft.train({**made, "data": {"dataset": "csv", "data_files": name}})
        with pytest.raises(hf_sft.HfSftError, match="package"):
            hf_sft.train({**made, "model": {"checkpoint": name}})
