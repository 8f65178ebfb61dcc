"""SQuAD's own files: paragraphs inside articles, and questions inside paragraphs, in one JSON object."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from hf_sft.data.csv_files import open_text

PEEK = 4096
"""Characters of a file that show whether it may be one."""
ROWS = Features(
    id=Value("string"),
    title=Value("string"),
    context=Value("string"),
    question=Value("string"),
    answers={"text": List(Value("string")), "answer_start": List(Value("int64"))},
)


def read_squad(paths: Sequence[str], encoding: str | None) -> Dataset | None:
    """A row for each question; None for files of another form."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        with open_text(path, encoding) as file:
            begins = file.read(PEEK)
            if not begins.lstrip().startswith("{") or '"paragraphs"' not in begins:
                return None
            try:
                content = json.loads(begins + file.read())
            except json.JSONDecodeError:  # a file of lines
                return None
        articles = content.get("data", [content])
        rows += [row for article in articles for row in _read_article(article)]
    return Dataset.from_list(rows, features=ROWS)


def _read_article(article: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for paragraph in article.get("paragraphs", ()):
        for question in paragraph.get("qas", ()):
            known = [] if question.get("is_impossible") else question.get("answers") or []
            yield {
                "id": str(question.get("id", "")),
                "title": article.get("title"),
                "context": paragraph.get("context"),
                "question": question.get("question"),
                "answers": {name: [each.get(name) for each in known] for name in ("text", "answer_start")},
            }
