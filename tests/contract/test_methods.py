"""Once for each file in hf_sft/methods: after training exactly the parameters that should have moved have changed."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

import hf_sft
from hf_sft.block import list_kinds, load_kind
from hf_sft.config.training import Training
from hf_sft.methods.head_only import HeadOnly
from hf_sft.tasks.sequence_classification import SequenceClassification
from hf_sft.trainer.module_modes import frozen_modules
from tests import tiny


def is_head(name: str) -> bool:
    return name.startswith(("classifier", "score", "bert.pooler"))


MOVES = {
    "full": lambda name: True,
    "last_layers": lambda name: not any(part in name for part in ("embed", "wte", "wpe")),
    "head_only": is_head,
    "lora": lambda name: is_head(name) or (name.endswith("weight") and "LayerNorm" not in name and ".ln_" not in name),
}
"""Which parameters of the saved model may differ from the checkpoint's (LoRA is merged: linear layers of the body); all, for a
method that has no entry."""


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", list_kinds("methods"))
def test_exactly_the_intended_parameters_change(method, family, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    recipe = hf_sft.Recipe.model_validate(tiny.recipe(checkpoints[family], files, tmp_path / "run", method))
    hf_sft.train(recipe)
    end = load_file(tmp_path / "run" / "model.safetensors")
    before = load_file(checkpoints[family] / "model.safetensors")
    prefix = {"bert": "bert.", "gpt2": "transformer."}[family]
    changed = {name for name in end if name.removeprefix(prefix) in before and _differs(end[name], before, name, prefix)}
    embeddings = {name for name in end if "embed" in name or "wte" in name or "wpe" in name}
    for name in end:
        if name.removeprefix(prefix) not in before:
            assert is_head(name), f"{name} is saved, and neither the checkpoint's nor the head's"
            continue
        may_move = MOVES.get(method, MOVES["full"])(name) and not (method == "lora" and name in embeddings)
        # A key's bias has no gradient, and an embedding's row only where its token occurs: those may stand still.
        assert (name in changed) <= may_move, f"{name} moved"
        assert may_move <= (name in changed or "key.bias" in name or "c_attn.bias" in name), f"{name} stood still"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["parameters"]["new"]) == {name for name in end if name.removeprefix(prefix) not in before}


def _differs(end: torch.Tensor, before: dict[str, torch.Tensor], name: str, prefix: str) -> bool:
    return not torch.equal(end, before[name.removeprefix(prefix)])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", list_kinds("methods"))
def test_whatever_is_new_moves(method, family, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    trainer = hf_sft.build_trainer(
        hf_sft.Recipe.model_validate(tiny.recipe(checkpoints[family], files, tmp_path / "run", method))
    )
    moving = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trainer.loaded.new
    for name in trainer.loaded.new:
        module, _, leaf = name.rpartition(".")
        assert any(module in found and found.endswith(leaf) for found in moving), name


def test_a_resting_body_has_no_dropout_and_a_moving_one_has(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    for method, rests in (("full", False), ("head_only", True), ("lora", False)):
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method)
        trainer = hf_sft.build_trainer(hf_sft.Recipe.model_validate(recipe))
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
        layer = trainer.loaded.body.encoder.layer[0]
        assert layer.training is not rests
        assert trainer.loaded.model.dropout.training
        assert bool(frozen_modules(trainer.loaded, trainer.model)) is (method != "full")


@pytest.mark.parametrize("name", list_kinds("methods"))
def test_every_method_explains_itself_and_has_defaults(name):
    kind = load_kind("methods", name)
    assert (kind.__doc__ or "").strip()
    assert [field for field, info in kind.model_fields.items() if not info.description] == []
    assert kind.training_defaults["learning_rate"] > 0


def test_a_merged_weight_is_the_checkpoint_s_plus_alpha_over_r_times_b_a(checkpoints, tmp_path):
    """By PEFT's own factors, as they are saved when the adapter is kept; the scale by the recipe's alpha and r."""
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    for name, merge in (("kept", False), ("merged", True)):
        fast = {"optim": "adamw_torch", "learning_rate": 1e-2}
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / name, "lora", training=fast)
        recipe["method"] |= {"r": 4, "alpha": 12.0, "merge": merge}
        hf_sft.train(recipe)
    base, merged = (load_file(path / "model.safetensors") for path in (checkpoints["bert"], tmp_path / "merged"))
    factors = load_file(tmp_path / "kept" / "adapter_model.safetensors")
    moved = [name.removesuffix(".lora_A.weight") for name in factors if name.endswith(".lora_A.weight")]
    assert len(moved) == 12
    for name in moved:
        update = 12.0 / 4 * factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
        inside = name.removeprefix("base_model.model.") + ".weight"
        torch.testing.assert_close(merged[inside], base[inside.removeprefix("bert.")] + update, rtol=1e-5, atol=1e-6)
        assert update.abs().max() > 1e-4


def test_whatever_is_new_is_of_the_head_wherever_it_is(checkpoints, tmp_path):
    """Parameters that the checkpoint did not bring are trained, also deep inside the body."""
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    loaded = hf_sft.build_trainer(tiny.recipe(checkpoints["bert"], files, tmp_path / "run")).loaded
    inside = tuple(f"bert.encoder.layer.1.output.dense.{part}" for part in ("weight", "bias"))
    odd = dataclasses.replace(loaded, new=(*loaded.new, *inside))
    task, training = SequenceClassification.sample()[0], Training()
    for name in ("head_only", "lora"):
        (phase,) = load_kind("methods", name).model_validate({"type": name}).phases(task, training, 40)
        model = phase.prepare(odd)
        moving = [n for n, p in model.named_parameters() if p.requires_grad]
        assert [n for n in moving if "layer.1.output.dense" in n and n.endswith("weight") and "lora" not in n], name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_lp_ft_is_head_only_and_then_full_from_there(family, checkpoints, tmp_path):
    """Each phase with a seed of its own: the second's is that of a run of its own."""
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    steps = {"max_steps": 4, "num_train_epochs": 3, "learning_rate": 0.1, "warmup_steps": 0}
    both = tiny.recipe(checkpoints[family], files, tmp_path / "both", "lp_ft", training=steps)
    both["method"]["head"] = {"max_steps": 7, "learning_rate": 0.3}
    report = hf_sft.train(both)
    assert [(p["name"], p["steps"], p["stored_features"]) for p in report.facts["training"]["phases"]] == [
        ("head", 7, True),
        ("full", 4, False),
    ]
    head = tiny.recipe(
        checkpoints[family], files, tmp_path / "head", "head_only", training={**steps, **both["method"]["head"]}
    )
    hf_sft.train(head)
    full = tiny.recipe(tmp_path / "head", files, tmp_path / "full", "full", training=steps)
    hf_sft.train({**full, "seed": 1_000_000})
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "full"))
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one)
    assert apart / sum(float(tensor.square().sum()) for tensor in one.values()) < 1e-12


def test_what_the_recipe_says_of_lp_ft_goes_to_the_phase_it_is_meant_for():
    task, _ = SequenceClassification.sample()
    method = load_kind("methods", "lp_ft").model_validate({"type": "lp_ft", "head": {"num_train_epochs": 7}})
    head, full = method.phases(task, Training(learning_rate=2e-5, batch_size=16, max_steps=9), 9999)
    assert (head.training.learning_rate, head.training.num_train_epochs, head.training.max_steps) == (1e-3, 7, -1)
    assert (full.training.learning_rate, full.training.num_train_epochs, full.training.max_steps) == (2e-5, 3, 9)
    assert head.training.batch_size == full.training.batch_size == 16


def test_a_misspelt_field_of_a_phase_is_told(checkpoints, tmp_path):
    recipe = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "d", "regression"), tmp_path / "run", "lp_ft")
    recipe["method"]["head"] = {"learning_rat": 1.0}
    with pytest.raises(hf_sft.RecipeError, match=r"method\.head.*`learning_rat`.*Did you mean `learning_rate`"):
        hf_sft.train(recipe)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_of_the_last_layers_as_many_move_as_are_asked_for(family, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", "last_layers")
    trainer = hf_sft.build_trainer({**recipe, "method": {"type": "last_layers", "layers": 1}})
    moving = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    below, top = trainer.loaded.layers
    assert {n for n in moving if n.startswith(trainer.loaded.prefix)} == {
        name for name, _ in trainer.model.named_parameters() if name.startswith((f"{top}.", "bert.pooler", "transformer.ln_f"))
    }
    trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert not trainer.model.get_submodule(below).training and trainer.model.get_submodule(top).training
    with pytest.raises(hf_sft.RecipeError, match=r"`method\.layers` is 3, but the body of .* has 2 layer"):
        hf_sft.check({**recipe, "method": {"type": "last_layers", "layers": 3}})


@pytest.mark.parametrize("variant", ["rslora", "dora", "lora_plus", "pissa"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_relative_of_lora_learns_and_is_saved_as_it_was_trained(family, variant, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    scores = []
    for merge in (True, False):
        recipe = tiny.recipe(checkpoints[family], files, tmp_path / str(merge), "lora")
        recipe["method"] |= {"variant": variant, "merge": merge}
        recipe["training"]["learning_rate"] = 0.02
        if variant == "pissa" and not merge:
            with pytest.raises(hf_sft.RecipeError, match="its adapter fits no checkpoint; merge it"):
                hf_sft.check(recipe)
            continue
        report = hf_sft.train(recipe)
        assert report.facts["certificate"]["within"]
        losses = report.facts["training"]["curves"][0]["losses"]
        assert losses[-1] < losses[0]
        scores.append([row["scores"] for row in hf_sft.predict(tmp_path / str(merge), files["test"])])
    for one, other in zip(scores[0], scores[-1], strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_each_relative_of_lora_is_what_its_paper_says(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")

    def trainer(variant: str):
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora")
        recipe["method"] |= {"variant": variant, "r": 4, "alpha": 12.0}
        return hf_sft.build_trainer(recipe)

    def a_layer(model):
        return model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")

    plain = a_layer(trainer("lora").model)
    assert plain.scaling["default"] == 3.0 and a_layer(trainer("rslora").model).scaling["default"] == 6.0
    sizes = a_layer(trainer("dora").model).lora_magnitude_vector["default"].weight
    torch.testing.assert_close(sizes, plain.base_layer.weight.norm(dim=1))
    left, right = plain.base_layer.weight, a_layer(trainer("pissa").model)
    update = 3.0 * right.lora_B["default"].weight @ right.lora_A["default"].weight
    torch.testing.assert_close(right.base_layer.weight + update, left, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(update.norm(), torch.linalg.svdvals(left)[:4].norm(), rtol=1e-4, atol=1e-6)
    faster = trainer("lora_plus")
    rates = {group["lr"] for group in faster.create_optimizer().param_groups}
    assert sorted(rates) == pytest.approx([0.1, 1.6])


@pytest.mark.parametrize("rows", [3, 17, 100, 616, 9_002, 67_349, 5_000_000])
@pytest.mark.parametrize("name", list_kinds("methods"))
def test_few_rows_are_seen_more_often_than_many(name, rows):
    """So that there are steps enough; the last evaluation, and the last checkpoint, are those of the last step."""
    method, task = load_kind("methods", name).model_validate({"type": name}), SequenceClassification.sample()[0]
    for phase in method.phases(task, Training(), rows):
        told, of_epoch = phase.training, -(-rows // phase.training.batch_size)
        steps, kind = told.num_train_epochs * of_epoch, HeadOnly if phase.name == "head" else type(method)
        least, most = kind.steps
        usual = kind.training_defaults["num_train_epochs"]
        # Of few rows in whole epochs, and those in twenty evaluations at most.
        longest = max(most, of_epoch) if usual * of_epoch >= least else 1.05 * (least + of_epoch) + 2 * of_epoch
        assert least <= steps <= longest
        assert told.num_train_epochs == usual or (told.num_train_epochs > usual) is (usual * of_epoch < least)
        between = of_epoch if told.eval_strategy == "epoch" else told.eval_steps
        assert steps % between == 0 and steps / between <= max(usual, 20)
        for scored in ({"eval_strategy": "steps", "eval_steps": 50}, {"eval_strategy": "epoch"}, {"eval_strategy": "no"}):
            for other in method.phases(task, Training(**scored), rows):
                if other.name == phase.name != "head":  # how often it is scored says nothing of how long it trains
                    found = {field: getattr(other.training, field) for field in scored}
                    assert found == scored and other.training.num_train_epochs <= told.num_train_epochs
                    assert other.training.num_train_epochs * of_epoch >= least
    told = {"num_train_epochs": 2, "eval_strategy": "no"}
    phase = method.phases(task, Training(**told), rows)[-1]
    assert {field: getattr(phase.training, field) for field in told} == told
    assert sum(phase.training.max_steps for phase in method.phases(task, Training(max_steps=7), rows)) == 7


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_lp_ft_shares_the_steps_between_its_phases_and_says_so(steps, checkpoints, tmp_path):
    task, _ = SequenceClassification.sample()
    method = load_kind("methods", "lp_ft").model_validate({"type": "lp_ft"})
    head, full = method.phases(task, Training(max_steps=steps), 9999)
    assert head.training.max_steps + full.training.max_steps == max(2, steps)
    assert abs(head.training.max_steps - full.training.max_steps) <= 1
    for block in ({"head": {"max_steps": 3}}, {"full": {"num_train_epochs": 2}}):
        given = load_kind("methods", "lp_ft").model_validate({"type": "lp_ft", **block})
        head, full = given.phases(task, Training(max_steps=steps), 9999)
        assert full.training.max_steps == steps and head.training.max_steps == block.get("head", {}).get("max_steps", -1)
    if steps == 7:
        files = tiny.write_rows(tmp_path / "data", "regression")
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lp_ft", training={"max_steps": 7})
        recipe["method"] = {"type": "lp_ft"}
        report = hf_sft.train(recipe)
        assert [phase["steps"] for phase in report.facts["training"]["phases"]] == [3, 4]
        note = "`training.max_steps: 7` is shared between the phases: 3 for phase head, 4 for phase full."
        assert note in report.facts["data"]["warnings"]
        again = hf_sft.train(tmp_path / "run" / "recipe.yaml", [f"output.folder={tmp_path / 'again'}"])
        assert [phase["steps"] for phase in again.facts["training"]["phases"]] == [3, 4]
