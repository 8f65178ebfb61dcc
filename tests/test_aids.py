"""Once for each file in hf_sft/aids: apply gives a new phase and leaves the old one alone; training still runs."""

import dataclasses

import pytest

import hf_sft
from hf_sft.block import list_kinds, load_kind
from hf_sft.methods.full import Full
from hf_sft.tasks.sequence_classification import SequenceClassification
from hf_sft.training import Training
from tests import tiny


@pytest.mark.parametrize("name", list_kinds("aids"))
def test_an_aid_gives_a_new_phase_and_leaves_the_old_one_alone(name):
    (phase,) = Full(type="full").phases(SequenceClassification(type="sequence_classification"), Training())
    before = dataclasses.asdict(dataclasses.replace(phase, training=None))
    applied = load_kind("aids", name)(type=name).apply(phase)
    assert applied is not phase and applied != phase
    assert dataclasses.asdict(dataclasses.replace(phase, training=None)) == before


@pytest.mark.parametrize("name", list_kinds("aids"))
def test_training_runs_with_the_aid(name, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    training = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=training, aids=[{"type": name}])
    assert hf_sft.train(hf_sft.Recipe.model_validate(recipe)).facts["training"]["phases"][0]["steps"] > 0


def test_early_stopping_stops_and_keeps_the_best(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    training = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 20, "learning_rate": 1e-9}
    aids = [{"type": "early_stopping", "patience": 2}]
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=training, aids=aids)
    phase = hf_sft.train(hf_sft.Recipe.model_validate(recipe)).facts["training"]["phases"][0]
    assert phase["steps"] == 3 * 3, "one evaluation sets the best, two do not improve on it"
    assert phase["best_step"] == 3
