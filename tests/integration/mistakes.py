"""Mistakes in recipes, data, checkpoints and folders, each with the message that it gets."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from tests import tiny

SINGLE = "single_label_classification"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class Bench:
    """A clean recipe on disk, to plant one mistake in."""

    def __init__(self, folder: Path, checkpoint: Path):
        self.folder, self.checkpoint = folder, checkpoint
        self.files = tiny.write_rows(folder / "data", SINGLE, train=20)
        self.recipe = tiny.recipe(checkpoint, self.files, folder / "run")
        self.overrides: list[str] = []

    def set(self, block: str, **fields: Any) -> None:
        self.recipe[block] = {**self.recipe.get(block, {}), **fields}

    def rows(self, split: str, change) -> None:
        path = Path(self.files[split])
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(lines(change(rows)))

    def write(self) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe, sort_keys=False))
        return path


def misspelt_key(b: Bench):
    b.set("task", text_par="text")


def wrong_type(b: Bench):
    b.recipe["method"] = {"type": "lora", "r": "eight"}


def owned_argument(b: Bench):
    b.set("training", gradient_accumulation_steps=4)


def unknown_task(b: Bench):
    b.set("task", type="sequence_clasification")


def unknown_metric(b: Bench):
    b.recipe["evaluation"] = {"metrics": ["acuracy"]}


def metric_of_another_kind(b: Bench):
    b.recipe["evaluation"] = {"metrics": ["pearson"]}


def best_not_measured(b: Bench):
    b.recipe["evaluation"] = {"metrics": ["accuracy"], "best": "f1_macro"}


def bad_override(b: Bench):
    b.overrides = ["training.learning_rate"]


def missing_data_file(b: Bench):
    b.set("data", data_files={**b.files, "train": "nowhere.jsonl"})


def missing_column(b: Bench):
    b.set("task", text="txt")


def missing_split(b: Bench):
    b.set("data", splits={"validation": "validatoin"})


def longer_than_the_model(b: Bench):
    b.set("task", max_length=1000)


def hub_data_without_network(b: Bench):
    b.recipe["data"] = {"dataset": "nyu-mll/glue", "config": "mrpc"}


def missing_package(b: Bench):
    b.set("model", checkpoint="package:no_such_package/model")


def missing_folder_in_package(b: Bench):
    b.set("model", checkpoint="package:transformers/no_such_folder")


def path_out_of_a_package(b: Bench):
    b.set("model", checkpoint="package:transformers/../torch")


def hub_checkpoint_without_network(b: Bench):
    b.set("model", checkpoint="google-bert/bert-base-uncased")


def _copy_of_checkpoint(b: Bench) -> Path:
    return Path(shutil.copytree(b.checkpoint, b.folder / "checkpoint"))


def checkpoint_without_weights(b: Bench):
    folder = _copy_of_checkpoint(b)
    (folder / "model.safetensors").unlink()
    b.set("model", checkpoint=str(folder))


def pickled_weights_only(b: Bench):
    folder = _copy_of_checkpoint(b)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    b.set("model", checkpoint=str(folder))


def checkpoint_without_config(b: Bench):
    folder = _copy_of_checkpoint(b)
    (folder / "config.json").unlink()
    b.set("model", checkpoint=str(folder))


def checkpoint_without_tokenizer(b: Bench):
    folder = _copy_of_checkpoint(b)
    for file in folder.glob("*token*"):
        file.unlink()
    b.set("model", checkpoint=str(folder))


def damaged_weights(b: Bench):
    folder = _copy_of_checkpoint(b)
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    b.set("model", checkpoint=str(folder))


def remote_code_in_the_recipe_alone(b: Bench):
    b.set("model", trust_remote_code=True)


def remote_code_needed(b: Bench):
    folder = _copy_of_checkpoint(b)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="odd_one", auto_map={"AutoConfig": "odd.OddConfig"})
    (folder / "config.json").write_text(json.dumps(config))
    b.set("model", checkpoint=str(folder))


def empty_text(b: Bench):
    b.rows("train", lambda rows: [*rows[:3], {"text": " ", "label": "law"}, *rows[3:]])


def null_text(b: Bench):
    b.rows("validation", lambda rows: [*rows, {"text": None, "label": "law"}])


def null_label(b: Bench):
    b.rows("train", lambda rows: [*rows, {"text": "goal", "label": None}])


def unknown_label(b: Bench):
    b.rows("validation", lambda rows: [*rows[:4], {"text": "goal", "label": "maybe"}, *rows[4:]])


def malformed_json(b: Bench):
    Path(b.files["train"]).write_text('{"text": "goal", "label": \n')


def one_class(b: Bench):
    for split in b.files:
        b.rows(split, lambda rows: [{**row, "label": "law"} for row in rows])


def too_many_rows(b: Bench):
    b.set("data", rows=1000)


def fractions_above_one(b: Bench):
    b.recipe["data"] = {"dataset": "json", "data_files": b.files["train"], "splits": {"validation": 0.5, "test": 0.6}}


def output_holds_a_run(b: Bench):
    (b.folder / "run").mkdir()
    (b.folder / "run" / "report.json").write_text("{}")


def output_is_a_file(b: Bench):
    (b.folder / "run").write_text("mine")


def unknown_target_module(b: Bench):
    b.recipe["method"] = {"type": "lora", "target_modules": ["q_proj"]}


def both_precisions(b: Bench):
    b.set("training", bf16=True, fp16=True)


def misspelt_schedule(b: Bench):
    b.set("training", lr_scheduler_type="cosin")


def misspelt_optimizer(b: Bench):
    b.set("training", optim="adam_w")


def schedule_without_its_arguments(b: Bench):
    b.set("training", lr_scheduler_type="cosine_with_min_lr")


def tracker_that_is_not_installed(b: Bench):
    b.set("training", report_to="wandb")


def unknown_tracker(b: Bench):
    b.set("training", report_to=["tensorbord"])


def early_stopping_without_evaluations(b: Bench):
    b.recipe["aids"] = [{"type": "early_stopping"}]


def the_same_text_twice(b: Bench):
    b.set("task", text_pair="text")


def task_by_its_problem_type(b: Bench):
    b.set("task", type="regression")


def short_name_of_a_field(b: Bench):
    b.set("training", lr=1e-3)


def resume_that_is_not_there(b: Bench):
    b.set("training", resume_from_checkpoint="x")


def output_below_a_file(b: Bench):
    (b.folder / "file").write_text("mine")
    b.set("output", folder=str(b.folder / "file" / "run"))
    b.set("data", data_files={"train": "nowhere.jsonl"})


def output_with_an_endless_name(b: Bench):
    b.set("output", folder=str(b.folder / ("x" * 300)))


def keep_on_words(b: Bench):
    for split in b.files:
        b.rows(split, lambda rows: [{**row, "ok": "no"} for row in rows])
    b.set("data", keep="ok")


def lists_of_one_zero_or_one(b: Bench):
    for split in b.files:
        b.rows(split, lambda rows: [{**row, "label": [i % 2]} for i, row in enumerate(rows)])


def regression_on_names(b: Bench):
    b.set("task", problem_type="regression")


def single_label_on_lists(b: Bench):
    for split in b.files:
        b.rows(split, lambda rows: [{**row, "label": [row["label"]]} for row in rows])
    b.set("task", problem_type=SINGLE)


def mixed_labels(b: Bench):
    b.rows("train", lambda rows: [*rows, {"text": "goal", "label": 3}])


def backward_slice(b: Bench):
    b.recipe["data"] = {"dataset": "json", "data_files": b.files["train"], "splits": {"test": "train[15:5]"}}


def all_three_fractions_too_large(b: Bench):
    fractions = {"train": 0.8, "validation": 0.2, "test": 0.2}
    b.recipe["data"] = {"dataset": "json", "data_files": b.files["train"], "splits": fractions}


def checkpoint_of_another_body(b: Bench):
    folder = _copy_of_checkpoint(b)
    shutil.copy(b.checkpoint.parent / "gpt2" / "model.safetensors", folder)
    b.set("model", checkpoint=str(folder))


def label_that_is_an_id(b: Bench):
    b.rows("train", lambda rows: [{**row, "id": f"row {i}"} for i, row in enumerate(rows)])
    b.set("task", label="id")


def fractions_as_text(b: Bench):
    for split in b.files:
        b.rows(split, lambda rows: [{**row, "label": f"{i % 7}.5"} for i, row in enumerate(rows)])


def nothing_left_to_train_on(b: Bench):
    b.rows("train", lambda rows: [{**row, "text": "  "} for row in rows])
    b.set("data", drop_invalid=True)


def texts_that_are_lists(b: Bench):
    for split in b.files:
        b.rows(split, lambda rows: [{**row, "text": row["text"].split()} for row in rows])


def text_that_is_the_label(b: Bench):
    b.set("task", text="label")


def near_target_module(b: Bench):
    b.recipe["method"] = {"type": "lora", "target_modules": ["querry"]}


def adapter_for_a_checkpoint(b: Bench):
    (b.folder / "adapter").mkdir()
    (b.folder / "adapter" / "adapter_config.json").write_text("{}")
    b.set("model", checkpoint=str(b.folder / "adapter"))


def tokens_without_embeddings(b: Bench):
    folder = _copy_of_checkpoint(b)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"more{i}" for i in range(30)])
    tokenizer.save_pretrained(folder)
    b.set("model", checkpoint=str(folder))


def mean_of_what_has_none(b: Bench):
    b.set("model", checkpoint=str(b.checkpoint.parent / "gpt2"))
    b.recipe["method"] = {"type": "head_only", "pool": "mean"}


MISTAKES = [
    (
        label_that_is_an_id,
        r"column `id` has 20 different values in 20 rows of train(.|\n)*Point `task\.label` at another column",
    ),
    (
        fractions_as_text,
        r"column `label` holds fractions that are written as text: 0\.5, 1\.5, 2\.5\.(.|\n)*as numbers",
    ),
    (nothing_left_to_train_on, r"split `train` has no rows left: none can be learned from\.(.|\n)*`text` is empty"),
    (texts_that_are_lists, r"olumn `text` holds list, not text, in 20 row\(s\) of split `train`: 0, 1"),
    (text_that_is_the_label, r"task\.text +must be another column than that of the label, `label`"),
    (near_target_module, r"names querry, .*Did you mean `query`\?"),
    (adapter_for_a_checkpoint, r"it holds a PEFT adapter; merge it first"),
    (tokens_without_embeddings, r"its tokenizer has 71 tokens, of which only the first 64 have embeddings"),
    (mean_of_what_has_none, r"GPT2ForSequenceClassification can't hold a head that reads the mean"),
    (longer_than_the_model, r"`task\.max_length` is 1000, but `.*bert` takes 64 tokens.  Lower it, or leave it out"),
    (misspelt_schedule, r"training\.lr_scheduler_type +must be one of .*got the schedule 'cosin'\. Did you mean `cosine`\?"),
    (misspelt_optimizer, r"training\.optim +must be one of .*got the optimizer 'adam_w'\. Did you mean `adamw"),
    (schedule_without_its_arguments, r"lr_scheduler_type` `cosine_with_min_lr` can't be built(.|\n)*lr_scheduler_kwargs"),
    (tracker_that_is_not_installed, r"names the tracker `wandb`, which is not installed"),
    (unknown_tracker, r"got 'tensorbord'\. Did you mean `tensorboard`\?"),
    (early_stopping_without_evaluations, r"`early_stopping` looks at evaluations, but `training\.eval_strategy` is `no`"),
    (the_same_text_twice, r"task\.text_pair +must be another column than `text`"),
    (task_by_its_problem_type, r"got 'regression'\. That is sequence_classification, with `problem_type: regression`"),
    (short_name_of_a_field, r"training\.lr +is not a field of training\. Did you mean `learning_rate`\?"),
    (resume_that_is_not_there, r"the command line: `hf-sft train … --resume` goes on"),
    (output_below_a_file, r"can't be made: `.*file` is a file"),
    (output_with_an_endless_name, r"can't be made: File name too long"),
    (keep_on_words, r"`data\.keep` names column `ok`, which holds 'no'"),
    (lists_of_one_zero_or_one, r"can be read in two ways"),
    (regression_on_names, r"needs numbers, but column `label` holds"),
    (single_label_on_lists, r"needs one value per row, but .* which holds lists"),
    (mixed_labels, r"column `label` holds values of several types"),
    (backward_slice, r"`train\[15:5\]` is not a slice, or one without rows"),
    (all_three_fractions_too_large, r"add up to 1\.2"),
    (checkpoint_of_another_body, r"does not fit BertForSequenceClassification"),
    (misspelt_key, r"line \d+  task\.text_par +is not a field of sequence_classification\. Did you mean `text_pair`\?"),
    (wrong_type, r"method\.r +must be a whole number of at least 1; got 'eight'"),
    (owned_argument, r"training\.gradient_accumulation_steps.*`training\.batch_size`"),
    (unknown_task, r"sequence_clasification.*Did you mean `sequence_classification`\?"),
    (unknown_metric, r"acuracy.*accuracy"),
    (metric_of_another_kind, r"`pearson`(.|\n)*accuracy"),
    (best_not_measured, r"f1_macro.*not among `metrics`"),
    (bad_override, r"expected `key=value`"),
    (missing_data_file, r"there is no file `nowhere\.jsonl`"),
    (missing_column, r"`task\.text` names column `txt`.*Did you mean `text`\?(.|\n)*It has: "),
    (missing_split, r"no split `validatoin`(.|\n)*Did you mean `validation`\?"),
    (hub_data_without_network, r"data set `nyu-mll/glue` can't be had"),
    (missing_package, r"no package `no_such_package` is installed.(.|\n)*pip install no_such_package"),
    (missing_folder_in_package, r"the package is installed, but has no `no_such_folder`"),
    (path_out_of_a_package, r"a path that stays inside the package"),
    (hub_checkpoint_without_network, r"`google-bert/bert-base-uncased` can't be had(.|\n)*not in the cache"),
    (checkpoint_without_weights, r"expected weights in \*\.safetensors, found none"),
    (pickled_weights_only, r"only pickled ones \(pytorch_model\.bin\)"),
    (checkpoint_without_config, r"has no config\.json"),
    (checkpoint_without_tokenizer, r"brings no tokenizer: its vocabulary is empty"),
    (damaged_weights, r"its model can't be loaded"),
    (remote_code_in_the_recipe_alone, r"--trust-remote-code"),
    (remote_code_needed, r"brings Python code of its own"),
    (empty_text, r"olumn `text` is empty in 1 row\(s\) of split `train`: 3"),
    (null_text, r"olumn `text` is null in 1 row\(s\) of split `validation`: 9"),
    (null_label, r"olumn `label` is null or empty in 1 row\(s\) of split `train`: 20"),
    (unknown_label, r"'maybe', which `train` never shows, in 1 row\(s\) of split `validation`: 4(.|\n)*drop_invalid"),
    (malformed_json, r"can't be read"),
    (one_class, r"shows 1 class\(es\): law"),
    (too_many_rows, r"`data\.rows` is 1000, but train has 20 rows"),
    (fractions_above_one, r"add up to 1\.1"),
    (output_holds_a_run, r"holds a run that can't be gone on with: its report\.json is damaged"),
    (output_is_a_file, r"is a file"),
    (unknown_target_module, r"names q_proj, which no linear layer of the body is called(.|\n)*query"),
    (both_precisions, r"can't both be true"),
]
