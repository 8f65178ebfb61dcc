"""What is taken out of texts: every secret, and nothing else."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hf_sft import redaction
from hf_sft.errors import DataError
from tests import ROOT


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://bob:secret@host/x.csv", "http://***@host/x.csv"),
        ("https://ghp_token@github.com/me/x", "https://***@github.com/me/x"),
        ("https://a:p@ss@host/x", "https://***@host/x"),
        ("see `https://host/x?token=abc&sig=d%2Fe&v=2`, and go", "see `https://host/x?token=***&sig=***&v=2`, and go"),
        ("https://host/x?X-Amz-Credential=A&X-Amz-Date=20260101#access_token=b", "https://host/x?X-Amz-Credential=***&X-Amz-Date=20260101#access_token=***"),
        ("https://host/x?id=1aB2cD3eF4gH5iJ6kL7mN8", "https://host/x?id=***"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("push with hf_abcDEF0123456789xyz now", "push with *** now"),
        ("{'a': 'http://bob:secret@host/x', 'b': 'http://host/y?key=1'}", "{'a': 'http://***@host/x', 'b': 'http://host/y?key=***'}"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_and_the_rest_stays(text, hidden):
    assert redaction.hide_secrets(text) == hidden
    assert redaction.hide_secrets(hidden) == hidden
    with pytest.raises(DataError, match=re.escape(hidden)):
        raise DataError(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/nyu-mll/glue",
        "https://host/x.csv?version=2&split=train",
        "http://host:8080/x",
        "me@example.org wrote hf_sft, and hf_home is a folder",
        "a token: x; key = value; password policy",
        "/home/bob/data?/x",
        "ftp://host/a/b@c/d",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redaction.hide_secrets(text) == text


def test_secrets_of_the_environment_are_hidden_and_settings_are_not(monkeypatch):
    for name, value in {
        "WANDB_API_KEY": "0123456789abcdef",
        "DB_PASSWORD": "correct horse",
        "HF_TOKEN": "aTokenOfAnotherForm",
        "TOKENIZERS_PARALLELISM": "falsefalse",
        "HF_TOKEN_PATH": "/root/.cache/token",
        "SECRET": "short",
    }.items():
        monkeypatch.setenv(name, value)
    text = "0123456789abcdef, correct horse, aTokenOfAnotherForm; falsefalse /root/.cache/token short"
    assert redaction.hide_secrets(text) == "***, ***, ***; falsefalse /root/.cache/token short"


def test_the_home_folder_is_a_tilde_and_no_other_folder_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/bob")
    text = "/home/bob/x, '/home/bob', /home/bobby/x, /home/bob-2, /srv/home/bob/y"
    assert redaction.hide_home(text) == "~/x, '~', /home/bobby/x, /home/bob-2, /srv/home/bob/y"
    monkeypatch.setenv("HOME", "/")
    assert redaction.hide_home("/x") == "/x"


@given(some.text())
def test_nothing_that_acts_is_left_and_all_that_shows_stays(text):
    shown = redaction.show_controls(text)
    assert not redaction.CONTROL.search(shown)
    assert redaction.show_controls(shown) == shown
    if not redaction.CONTROL.search(text):
        assert shown == text


@pytest.mark.parametrize("text", ["line\nline\r\nline\tcell", "naïve 日本語 👩‍💻 می‌خواهم", "e\u0301"])
def test_writing_is_no_control(text):
    assert redaction.show_controls(text) == text


def test_all_texts_of_a_value_are_changed():
    value = {"a": ["x", ("y", 1, None)], "b": {"c": "z"}}
    assert redaction.in_all(value, str.upper) == {"A": ["X", ("Y", 1, None)], "B": {"C": "Z"}}


def test_help_does_not_wait_for_it():
    code = "import sys, hf_sft.cli; assert not {'huggingface_hub', 'torch', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
