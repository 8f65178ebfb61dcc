"""Checkpoints and runs that somebody has altered."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests import tiny


def change_one_weight(folder: Path) -> None:
    (path,) = folder.glob("*model.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(("value.weight", "lora_B.weight")))
    weights[name][0, 0] += 0.5
    save_file(weights, path, metadata={"format": "pt"})


def change_a_token(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = tiny.WORDS[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(words))


FOREIGN = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path({witness!r}).write_text("foreign code has run")
class OddConfig(BertConfig):
    model_type = "odd_one"
class OddModel(BertForSequenceClassification):
    config_class = OddConfig
"""


def with_code(folder: Path, witness: Path) -> None:
    """Make a checkpoint ask for Python of its own, which leaves a witness when it runs."""
    config = json.loads((folder / "config.json").read_text())
    models = dict.fromkeys(("AutoModel", "AutoModelForSequenceClassification"), "odd.OddModel")
    config.update(model_type="odd_one", auto_map={"AutoConfig": "odd.OddConfig", **models})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(FOREIGN.format(witness=str(witness)))
