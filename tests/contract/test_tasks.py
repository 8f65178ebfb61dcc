"""The contract of a task, once for each file in hf_sft/tasks: sample, encode, collate, finite loss, decode, score."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig

from hf_sft.block import list_kinds, load_kind
from hf_sft.config.machine import resolve_machine
from hf_sft.config.training import Training
from hf_sft.errors import CheckpointError
from hf_sft.evaluation.bootstrap import measure
from hf_sft.evaluation.inference import writer
from hf_sft.losses import item_loss
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_model, load_processor
from hf_sft.tasks.chat import Chat
from hf_sft.tasks.common.baselines import fit_all
from tests import tiny


@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
@pytest.mark.parametrize("name", list_kinds("tasks"))
def test_a_task_goes_from_its_sample_to_a_score(name, family, checkpoints):
    task, rows = load_kind("tasks", name).sample()
    if type(AutoConfig.from_pretrained(checkpoints[family])) not in task.auto_model._model_mapping:
        pytest.skip(f"transformers has no head of {name} for {family}")
    assert task.type == name
    task, labels, _ = task.resolve({"train": rows})
    assert task.invalid_rows(rows, labels) == {}
    checkpoint = Checkpoint(checkpoint=str(checkpoints[family]))
    processor = load_processor(checkpoint, auto=task.auto_processor)
    try:
        model = load_model(checkpoint, task, labels, processor).model
        task, _ = task.probe(model, processor)
    except CheckpointError as error:
        pytest.skip(str(error))

    encoded = task.encode(rows[:], processor, labels)
    assert len({len(column) for column in encoded.values()}) == 1
    examples = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    for raw in task.raw_columns():
        examples = [{**example, raw: cell} for example, cell in zip(examples, rows[raw], strict=True)]
    batch = task.collator(processor)(examples)
    items = task.items(model, batch)
    losses = item_loss(items)
    assert torch.isfinite(losses).all() and losses.shape == (len(items),) and losses.dtype == torch.float32
    assert len(items) == sum(encoded.get("items", [1] * len(rows))) > 0

    halves = [task.collator(processor)(half) for half in (examples[: len(rows) // 2], examples[len(rows) // 2 :])]
    apart = torch.cat([item_loss(task.items(model, half)) for half in halves])
    torch.testing.assert_close(apart, losses, rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        kept = task.inference_step(model, batch)
    assert len(kept) == len(examples) and {each.dtype for each in kept} == {np.dtype(np.float32)}
    of_row = encoded.get("row", range(len(rows)))
    assert list(of_row) == sorted(of_row)
    by_row = [[each for each, row in zip(kept, of_row, strict=True) if row == i] for i in range(len(rows))]
    if write := writer(task, processor, resolve_machine(Training(bf16=False))):
        by_row = [[*each, np.array(text)] for each, text in zip(by_row, write(model, rows), strict=True)]
    answers = task.answer(by_row, rows, labels)
    assert isinstance(answers, task.answer_kind()) and answers.finite
    predictions = answers.as_json()
    assert len(predictions) == len(answers) == len(task.references(rows)) == len(rows)
    assert all(prediction.keys() == task.answer_kind().null_answer.keys() for prediction in predictions)
    json.dumps(predictions)
    references = task.answer_kind().read_references(task.targets(rows[:], labels))
    values = measure(task.default_metrics, answers, references)
    assert all(np.isfinite(value) for value in values.values())
    fitted, failed = fit_all(task.baselines(rows, labels, processor))
    assert fitted and not failed
    for answer in fitted.values():
        guesses = answer(rows)
        assert isinstance(guesses, task.answer_kind()) and guesses.finite and len(guesses) == len(rows)
    few = [2, 0]
    parts = [answers.take(np.array([place])) for place in few]
    assert type(answers).join(parts).as_json() == [predictions[place] for place in few]
    assert len(answers.mistakes(references)) <= len(rows)


@pytest.mark.parametrize("name", list_kinds("tasks"))
def test_every_field_of_a_task_says_what_it_is_for(name):
    kind = load_kind("tasks", name)
    assert (kind.__doc__ or "").strip()
    assert [field for field, info in kind.model_fields.items() if not info.description] == []


def talk(*words):
    return [{"role": ("user", "assistant")[place % 2], "content": word} for place, word in enumerate(words)]


def other_answers(task, rows):
    """The same inputs with the answers of other rows."""
    if not isinstance(task, Chat):
        asked = {column: rows[column][:] for column in task.input_columns()}
        answers = {column: rows[column][::-1] for column in rows.column_names if column not in asked}
        return Dataset.from_dict({**asked, **answers}, features=rows.features)
    return Dataset.from_dict({"messages": [[*talk[:-1], {**talk[-1], "content": "other"}] for talk in rows["messages"]]})


@pytest.mark.parametrize("name", list_kinds("tasks"))
def test_rows_are_the_same_by_what_is_asked_and_not_by_the_answer(name):
    """A question of train with another answer in test has been seen all the same."""
    task, rows = load_kind("tasks", name).sample()
    task, _, _ = task.resolve({"train": rows})
    known = task.identities(rows)
    assert task.identities(other_answers(task, rows)) == known
    inputs = [[row[column] for column in task.input_columns()] for row in rows]
    inputs = [[cell[:-1] for cell in row] for row in inputs] if isinstance(task, Chat) else inputs
    asked = [repr(row) for row in inputs]
    assert len({*asked}) > 1 and len({*known}) == len({*asked}) == len({*zip(known, asked, strict=True)})


def test_a_conversation_is_the_same_by_the_turns_before_its_last_answer():
    talks = [talk("q", "a"), talk("q", "b"), talk("q", "a", "and?"), talk("q", "a", "and?", "so"), talk("r", "a")]
    first, second, unanswered, longer, other = Chat(type="chat").identities(Dataset.from_dict({"messages": talks}))
    assert first == second == unanswered and len({first, longer, other}) == 3


SHORT, LONG = "the goal", " ".join(tiny.WORDS * 3)
OF_A_LENGTH = {
    "sequence_classification": ("bert", {"text": [SHORT, LONG], "label": ["a", "b"]}, [False, True]),
    "multiple_choice": ("bert", {"context": [SHORT, LONG], "choices": [["a", "law"]] * 2, "label": [0, 1]}, [False, True]),
    "chat": ("gpt2", {"messages": [talk(SHORT, "good"), talk("good", LONG)]}, [False, True]),
    "seq2seq": ("t5", {"source": [SHORT, LONG], "target": ["law"] * 2}, [False, True]),
    "token_classification": ("bert", {"words": [SHORT.split(), LONG.split()], "tags": [["O"] * 2, ["O"] * 108]}, [False] * 2),
    "causal_lm": ("gpt2", {"text": [SHORT, LONG]}, [False, False]),
    "masked_lm": ("bert", {"text": [SHORT, LONG]}, [False, False]),
    "question_answering": (
        "bert",
        {"question": ["who", "who", LONG], "context": [SHORT, LONG, SHORT], "answers": [{"text": [], "answer_start": []}] * 3},
        [False, False, True],
    ),
}
"""Rows that fit and rows that don't, and which of them are said to be cut: not where windows read all of them."""


@pytest.mark.parametrize("name", [name for name in list_kinds("tasks") if name != "image_classification"])
def test_rows_of_which_the_model_is_not_shown_all_are_said_to_be_cut_and_no_others(name, checkpoints):
    family, columns, wanted = OF_A_LENGTH[name]
    fields = {"max_length": 32, **({"chat_template": "plain"} if name == "chat" else {})}
    rows = Dataset.from_dict(columns)
    task, labels, _ = load_kind("tasks", name).model_validate({"type": name, **fields}).resolve({"train": rows})
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints[family])), 32, task.auto_processor)
    encoded = task.encode(rows[:], processor, labels)
    of_row = encoded.get("row", range(len(rows)))
    cut = {row for row, is_so in zip(of_row, encoded["truncated"], strict=True) if is_so}
    assert [row in cut for row in range(len(rows))] == wanted
    parts = [part for ids in encoded["input_ids"] for part in (ids if isinstance(ids[0], list) else [ids])]
    assert max(map(len, parts)) == 32


@pytest.mark.parametrize("name", list_kinds("methods"))
def test_steps_that_are_not_positive_leave_it_to_the_epochs(name):
    task, _ = load_kind("tasks", "sequence_classification").sample()
    method = load_kind("methods", name).model_validate({"type": name})
    for steps in (-1, 0):
        for phase in method.phases(task, Training(max_steps=steps, num_train_epochs=2), 40):
            assert phase.training.max_steps == steps or (phase.name == "head" and phase.training.max_steps == -1)
