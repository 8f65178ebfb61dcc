"""Only what pictures need: files that are read as they are meant, statistics that rest, and what is learned from digits."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetModel,
    pipeline,
)

import hf_sft
from hf_sft.cli import app
from hf_sft.data.data_source import DataSource
from hf_sft.data.splits import load_splits
from hf_sft.tasks.common.images import hash_image, open_image
from hf_sft.tasks.image_classification import ImageClassification
from tests import ROOT, tiny

TASK = {"type": "image_classification"}


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def test_grey_transparent_indexed_and_turned_pictures_are_read_as_rgb():
    def read(image: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
        return np.asarray(open_image({"bytes": as_bytes(image, kind, **options), "path": None}))

    ramp = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    three = np.repeat(np.asarray(ramp)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(ramp), three)
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    clear = colours.copy()
    clear.putalpha(100)
    np.testing.assert_array_equal(read(clear), np.asarray(colours))
    np.testing.assert_array_equal(read(ramp.convert("P")), three)
    # Pillow's own conversion makes all but the darkest two hundred and fifty-sixth of 16 bits white.
    deep = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    np.testing.assert_array_equal(read(deep), three)
    turned = Image.Exif()
    turned[0x0112] = 6
    np.testing.assert_array_equal(read(colours, exif=turned), np.rot90(np.asarray(colours), -1))


def test_pictures_paths_bytes_and_folders_are_the_same_rows(tmp_path):
    """And a file that changes in its place is another row."""
    files = tiny.write_rows(tmp_path / "data", "pictures")
    made = {name: [json.loads(line) for line in Path(file).read_text().splitlines()] for name, file in files.items()}

    def load(data: dict[str, Any], **fields: Any) -> Any:
        source = DataSource.model_validate(data)
        return load_splits(source, ImageClassification.model_validate({**TASK, **fields}))

    paths = load({"dataset": "json", "data_files": files})
    for name, rows in made.items():
        for row in rows:
            target = tmp_path / "folder" / name / row["label"] / row["image"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((tmp_path / "data" / row["image"]).read_bytes())
        contents = [(tmp_path / "data" / row["image"]).read_bytes() for row in rows]
        Dataset.from_dict({"image": contents, "label": [row["label"] for row in rows]}).to_parquet(
            str(tmp_path / f"{name}.parquet")
        )
    parquet = load({"dataset": "parquet", "data_files": {name: str(tmp_path / f"{name}.parquet") for name in made}})
    folders = load({"dataset": "imagefolder", "data_dir": str(tmp_path / "folder")})
    assert paths.labels == parquet.labels == folders.labels == hf_sft.Labels(("business", "law", "sport"))
    assert paths.fingerprints == parquet.fingerprints
    task = paths.task
    for name in made:
        pairs = [sorted(zip(task.identities(s.rows[name]), s.rows[name]["label"], strict=True)) for s in (paths, folders)]
        assert pairs[0] == pairs[1] and len(pairs[0]) == len(made[name])
    tiny.draw(4000).save(tmp_path / "data" / made["test"][3]["image"])
    again = load({"dataset": "json", "data_files": files}).fingerprints
    assert {name for name in made if again[name] != paths.fingerprints[name]} == {"test"}


def test_equal_pictures_stay_on_one_side_whatever_their_files_are_called(tmp_path):
    for i in range(40):
        for copy in "ab":
            tiny.draw(i).save(tmp_path / f"{i}{copy}.png")
    lines = [{"image": f"{i}{copy}.png", "label": "xy"[i % 2]} for i in range(40) for copy in "ab"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = load_splits(DataSource(dataset=str(tmp_path / "rows.jsonl")), ImageClassification.model_validate(TASK))
    sides = [set(splits.task.identities(rows)) for rows in splits.rows.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"no picture",
            r"Column `image`: `203.png` can't be read \(cannot identify image file\) in 1 row\(s\) of split `test`",
        ),
        (None, r"`203.png` can't be read \(No such file or directory\)"),
        (as_bytes(tiny.draw(3))[:-60], r"`203.png` can't be read \(.*\)"),
        (as_bytes(tiny.draw(3), "JPEG")[:-200], r"`203.png` can't be read \(image file is truncated.*\)"),
        (as_bytes(tiny.draw(3).convert("F"), "TIFF"), r"`203.png` can't be read \(its pixels are of mode F"),
    ],
)
def test_pictures_that_cannot_be_read_are_named_before_anything_is_written(content, message, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    path = tmp_path / "data" / "203.png"
    path.unlink() if content is None else path.write_bytes(content)
    recipe = tiny.recipe(checkpoints["resnet"], files, tmp_path / "run", task=TASK)
    with pytest.raises(hf_sft.DataError, match=message):
        hf_sft.train(recipe)
    assert not (tmp_path / "run").exists()
    recipe["data"]["drop_invalid"] = True
    assert hf_sft.train(recipe).facts["data"]["rows"]["test"] == 10


def test_a_checkpoint_for_texts_and_a_column_of_numbers_are_refused(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    with pytest.raises(hf_sft.CheckpointError, match="brings no image processor: expected preprocessor_config"):
        hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=TASK))
    with pytest.raises(hf_sft.CheckpointError, match="tokenizer"):
        texts = tiny.write_rows(tmp_path / "texts", "single_label_classification")
        hf_sft.check(tiny.recipe(checkpoints["resnet"], texts, tmp_path / "run"))
    numbers = tiny.write_rows(tmp_path / "numbers", "regression")
    with pytest.raises(hf_sft.DataError, match=r"column `label` holds .*float.*, which are not pictures"):
        hf_sft.check(tiny.recipe(checkpoints["resnet"], numbers, tmp_path / "run", task={**TASK, "image": "label"}))


def test_a_processor_that_keeps_proportions_is_refused(checkpoints, tmp_path):
    files, checkpoint = tiny.write_rows(tmp_path / "data", "pictures"), tiny.build("vit", tmp_path / "vit")
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": 48}, do_center_crop=False).save_pretrained(checkpoint)
    with pytest.raises(hf_sft.CheckpointError, match="pictures of different sizes"):
        hf_sft.check(tiny.recipe(checkpoint, files, tmp_path / "run", task=TASK))


@pytest.mark.parametrize("method", ["full", "head_only", "lora", "lp_ft"])
def test_batch_norms_keep_the_checkpoints_statistics_to_the_bit(method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    hf_sft.train(tiny.recipe(checkpoints["resnet"], files, tmp_path / "run", method, task=TASK))
    before, after = load_file(checkpoints["resnet"] / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert statistics and all(torch.equal(before[name], after[f"resnet.{name}"]) for name in statistics)
    moved = any(not torch.equal(before[name], after[f"resnet.{name}"]) for name in before)
    assert moved == (method != "head_only")


@pytest.mark.parametrize("family", tiny.IMAGE_FAMILIES)
def test_the_head_learns_on_stored_features_what_it_learns_on_the_body(family, checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    stored = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "stored", "head_only", task=TASK))
    assert stored.facts["training"]["phases"][0]["stored_features"]
    for way in ("features", "states"):
        monkeypatch.setattr(f"hf_sft.trainer.speedups.stored.store_{way}", lambda *_: None)
    hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "each", "head_only", task=TASK))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("stored", "each"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "head_only", "lora", "lora:kept"])
@pytest.mark.parametrize("family", tiny.IMAGE_FAMILIES)
def test_a_run_answers_files_and_folders_as_it_was_scored_and_as_a_pipeline_does(family, method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    report = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=TASK))
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    answers = hf_sft.predict(tmp_path / "run", files["test"])
    assert [(a["label"], a["reference"]) for a in answers] == [(w["label"], w["reference"]) for w in written]
    again = hf_sft.evaluate(tmp_path / "run")
    assert {n: s.value for n, s in again.scores.items()} == {n: s["value"] for n, s in report.metrics["test"].items()}
    paths = [str(tmp_path / "data" / f"{i}.png") for i in range(200, 211)]
    if method == "lora:kept":
        from peft import PeftModel

        config = AutoConfig.from_pretrained(tmp_path / "run")
        base = AutoModelForImageClassification.from_pretrained(checkpoints[family], config=config)
        model = PeftModel.from_pretrained(base, tmp_path / "run")
        processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
        answer = pipeline("image-classification", model=model, image_processor=processor)
    else:
        answer = pipeline("image-classification", model=str(tmp_path / "run"))
    for said, scored in zip(answer(paths), written, strict=True):
        assert {each["label"]: each["score"] for each in said} == pytest.approx(scored["scores"], abs=1e-5)
    for i in range(200, 203):
        (tmp_path / "some" / "deep").mkdir(parents=True, exist_ok=True)
        tiny.draw(i).save(tmp_path / "some" / "deep" / f"{i}.png")
    (tmp_path / "some" / "notes.txt").write_text("no picture")
    found = hf_sft.predict(tmp_path / "run", [paths[3], str(tmp_path / "some")])
    assert [Path(each["file"]).name for each in found] == ["203.png", "200.png", "201.png", "202.png"]
    assert [each["scores"] for each in found] == [pytest.approx(written[i]["scores"], abs=1e-5) for i in (3, 0, 1, 2)]
    assert hf_sft.predict(tmp_path / "run", str(tmp_path / "some")) == [{**each, "row": i} for i, each in enumerate(found[1:])]


def test_the_command_takes_files_and_folders_and_names_what_is_none(checkpoints, tmp_path, capsys):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    hf_sft.train(tiny.recipe(checkpoints["vit"], files, tmp_path / "run", "head_only", task=TASK))
    app(["predict", str(tmp_path / "run"), str(tmp_path / "data" / "203.png"), str(tmp_path / "data")], standalone_mode=False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 17 + 9 + 11 and lines[0]["file"].endswith("203.png") and lines[0]["label"]
    (tmp_path / "empty").mkdir()
    for given, message in (("none.png", "there is no such file"), ("empty", "there are no pictures in this folder")):
        with pytest.raises(hf_sft.DataError, match=message):
            hf_sft.predict(tmp_path / "run", [str(tmp_path / given)])
    (tmp_path / "bad.png").write_bytes(b"none")
    with pytest.raises(hf_sft.DataError, match=r"`bad.png` can't be read"):
        hf_sft.predict(tmp_path / "run", [str(tmp_path / "bad.png")])


def test_the_report_shows_the_pictures_and_check_their_sizes(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pictures")
    recipe = tiny.recipe(checkpoints["resnet"], files, tmp_path / "run", "head_only", task=TASK)
    found = hf_sft.check(recipe).facts
    assert found["first row"] == "0.png"
    assert found["as the model sees it"] == "40×30 pixels -> 48×48, 3 channels  [labels sport]"
    report = hf_sft.train(recipe)
    wrong = report.facts["data"]["rows"]["test"] * (1 - report.metrics["test"]["accuracy"]["value"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == min(10, round(wrong)) > 0
    assert set(report.facts["baselines"]) == {"majority", "pixels_logreg"}
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'answer("picture.jpg")' in card and "hf-sft predict" in card and "PICTURE …" in card


def write_digits(folder: Path, digits: range) -> dict[str, str]:
    """scikit-learn's digits as files of 8×8 pixels, half for training, a fourth for each of the others."""
    found, files = load_digits(), {}
    places = [i for i in range(len(found.target)) if found.target[i] in digits]
    folder.mkdir(parents=True)
    for name, share in (("train", lambda i: i % 4 < 2), ("validation", lambda i: i % 4 == 2), ("test", lambda i: i % 4 == 3)):
        lines = []
        for i in (place for number, place in enumerate(places) if share(number)):
            Image.fromarray((found.images[i] * 15.9).astype(np.uint8)).save(folder / f"{i}.png")
            lines.append(json.dumps({"image": f"{i}.png", "label": f"digit {found.target[i]}"}) + "\n")
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("".join(lines))
    return files


def test_what_was_learned_of_five_digits_serves_for_the_other_five(tmp_path):
    """Only the head moves in the second recipe, once on what the first has learned, and once on random weights."""
    size = {"embedding_size": 32, "hidden_sizes": [32, 96], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(1)
    ResNetModel(ResNetConfig(**size)).save_pretrained(tmp_path / "random")
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path / "random")
    low, high = write_digits(tmp_path / "low", range(5)), write_digits(tmp_path / "high", range(5, 10))
    adam = {"optim": "adamw_torch", "batch_size": 32, "eval_strategy": "no"}
    first = {**adam, "learning_rate": 1e-3, "max_steps": 150}
    taught = hf_sft.train(tiny.recipe(tmp_path / "random", low, tmp_path / "taught", task=TASK, training=first))
    assert taught.metrics["test"]["accuracy"]["value"] > 0.95
    second = {**adam, "learning_rate": 1e-2, "max_steps": 60}
    scores = {}
    for name in ("taught", "random"):
        recipe = tiny.recipe(tmp_path / name, high, tmp_path / f"on_{name}", "head_only", task=TASK, training=second)
        scores[name] = hf_sft.train(recipe).metrics["test"]["accuracy"]
    assert scores["taught"]["value"] >= 0.8
    assert scores["taught"]["low"] > scores["random"]["high"], scores


def test_resnet_50_goes_through_check_and_three_steps_of_its_recipe(tmp_path):
    """Its own architecture, with random weights; the recipe of the introductions: SGD, momentum 0.9, learning rate 0.001."""
    torch.manual_seed(0)
    ResNetModel(ResNetConfig()).save_pretrained(tmp_path / "resnet50")
    ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.875).save_pretrained(tmp_path / "resnet50")
    files = tiny.write_rows(tmp_path / "data", "pictures", train=12)
    recipe = ROOT / "recipes" / "beans_resnet50_head_only.yaml"
    mapping = ", ".join(f"{name}: {path}" for name, path in files.items())
    words = [
        f"model.checkpoint={tmp_path / 'resnet50'}",
        "data.dataset=json",
        f"data.data_files={{{mapping}}}",
        "task.label=label",
        "training.max_steps=3",
        "training.batch_size=4",
        "training.disable_tqdm=true",
        f"output.folder={tmp_path / 'run'}",
    ]
    found = hf_sft.check(recipe, words)
    assert "96×96" in found.facts["as the model sees it"]
    trainer = hf_sft.build_trainer(recipe, [*words[:-1], f"output.folder={tmp_path / 'other'}"])
    (group, *_) = trainer.create_optimizer().param_groups
    assert (group["momentum"], group["lr"]) == (0.9, 0.001)
    report = hf_sft.train(recipe, words)
    assert report.facts["training"]["phases"][0]["steps"] == 3 and report.facts["training"]["phases"][0]["stored_features"]


def test_hashes_are_of_contents(tmp_path):
    tiny.draw(1).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert hash_image({"path": str(tmp_path / "a.png"), "bytes": None}) == hash_image({"path": None, "bytes": content})
