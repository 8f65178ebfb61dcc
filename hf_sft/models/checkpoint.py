"""The `model` block, what it names, and the config that is there."""

import json
import os
import re
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from yaml import YAMLError

from hf_sft.block import Block
from hf_sft.errors import CheckpointError, nearest, suggest
from hf_sft.models.gguf import dequantise
from hf_sft.models.new_tokenizer import NewTokenizer
from hf_sft.storage.atomic_folder import hash_file
from hf_sft.storage.package_paths import NOWHERE, absolute, locate, path_of
from hf_sft.storage.revisions import find_commit

CARD, POOLING = "README.md", "1_Pooling/config.json"
INHERITED = ("license", "license_name", "license_link", "language")
"""Metadata of a checkpoint's card that a model made from it starts with."""
MOST_TEXTS, LONGEST = 200, 300
"""Of a value there: texts, and characters of each."""


class Checkpoint(Block):
    """Where training starts: a checkpoint of the Hub, a folder, a finished run, a folder inside an installed package; or
    nothing, with random weights."""

    checkpoint: str | None = None
    """A Hub id, a folder (a run folder too), or package:NAME/PATH for a folder inside an installed package."""
    from_config: str | None = None
    """Random weights instead: of an architecture by its name in transformers (gpt2, bert), or of a checkpoint's config."""
    config: dict[str, Any] = Field(default_factory=dict)
    """For `from_config`: fields of that config to set, by their names in transformers."""
    tokenizer: str | NewTokenizer | None = None
    """For `from_config`: a checkpoint whose tokenizer is taken, or a `type` and a `vocab_size` to train one on train."""
    add_tokens: tuple[str, ...] = ()
    """Tokens that its tokenizer lacks; their embeddings begin at the mean of the others, and are trained under LoRA too."""
    gguf_file: str | None = None
    """A GGUF file there: it is dequantised once, to float32, and trained like any other checkpoint."""
    load_in_4bit: bool = False
    """QLoRA: the frozen body has 4 bits a weight (bitsandbytes); adapters and head have full precision."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; resolved to a commit in the run folder's recipe."""
    trust_remote_code: bool = False
    """Run Python that the checkpoint brings; the command line must say --trust-remote-code too."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "Checkpoint":
        if (self.checkpoint is None) is (self.from_config is None):
            given = "both are" if self.checkpoint else "none is"
            raise PydanticCustomError("beginning", "needs `checkpoint` or `from_config`; {given} given", {"given": given})
        for name in ("gguf_file", "load_in_4bit", "add_tokens"):
            if self.checkpoint is None and getattr(self, name):
                raise PydanticCustomError("beginning", "`{name}` goes with `checkpoint`", {"name": name})
        if self.checkpoint is not None and (self.config or self.tokenizer):
            raise PydanticCustomError("beginning", "`config` and `tokenizer` go with `from_config`: a checkpoint has its own")
        if self.tokenizer is None and self.from_config in CONFIG_MAPPING:
            raise PydanticCustomError(
                "beginning", "needs `tokenizer`: an architecture brings none; name a checkpoint that does, or train one"
            )
        known = CONFIG_MAPPING[self.from_config]() if self.from_config and self.from_config in CONFIG_MAPPING else None
        if known is not None and (unknown := _find_unknown(self.config, known)):
            raise PydanticCustomError("config", "{unknown}", {"unknown": unknown})
        return self

    def absolute(self) -> "Checkpoint":
        """The same with absolute paths of folders: found from wherever one stands."""
        named = {name: getattr(self, name) for name in ("checkpoint", "from_config", "tokenizer")}
        folders = {name: path for name, path in named.items() if isinstance(path, str) and path_of(path).is_dir()}
        return self.model_copy(update={name: absolute(path) for name, path in folders.items()})

    @property
    def name(self) -> str:
        """What to call it."""
        named = f"{self.checkpoint}/{self.gguf_file}" if self.gguf_file else self.checkpoint
        return named or f"{self.from_config} with random weights"

    @property
    def where(self) -> str:
        """What is read: the checkpoint, or the one whose config is taken."""
        return str(self.checkpoint or self.from_config)


def load_config(checkpoint: Checkpoint, fields: dict[str, Any]) -> PretrainedConfig:
    """What is there, with fields set. Raises `CheckpointError`."""
    where, fields = find_checkpoint(checkpoint), {**checkpoint.config, **fields}
    if checkpoint.from_config in CONFIG_MAPPING:
        return _with_fields(checkpoint, AutoConfig.for_model(where), fields)
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        what = "it has no config.json"
        if files := ", ".join(path.name for path in sorted(Path(where).glob("*.gguf"))):
            what = f"it holds GGUF files; name one as `model.gguf_file`: {files}"
        if (Path(where) / "adapter_config.json").is_file():
            what = "it holds a PEFT adapter; merge it first, and give the merged folder"
        raise CheckpointError(f"checkpoint `{checkpoint.where}` is not a model folder: {what}.")
    try:
        config = AutoConfig.from_pretrained(where, **source_of(checkpoint), **({} if checkpoint.from_config else fields))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(explain(checkpoint, "config", error)) from error
    return _with_fields(checkpoint, config, fields) if checkpoint.from_config else config


def _find_unknown(fields: dict[str, Any], config: PretrainedConfig) -> str | None:
    """A message about the first field that a config does not have."""
    unknown = next((name for name in fields if not hasattr(config, name)), None)
    if unknown is None:
        return None
    hint = suggest(nearest(unknown, config.to_dict()))
    return f"`config.{unknown}`: the config of {config.model_type} has no such field.{hint}"


def _with_fields(checkpoint: Checkpoint, config: PretrainedConfig, fields: dict[str, Any]) -> PretrainedConfig:
    """The config with fields set, all together: transformers looks whether they go together. Raises `CheckpointError`."""
    if unknown := _find_unknown(checkpoint.config, config):
        raise CheckpointError(unknown)
    try:
        # A named architecture's defaults follow what is set: T5's decoder has as many layers as its encoder.
        known = {} if checkpoint.from_config in CONFIG_MAPPING else config.to_dict()
        return type(config).from_dict({**known, **fields})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"`model.config` makes no config of {config.model_type}: {reason}") from error


def find_checkpoint(checkpoint: Checkpoint) -> str:
    """The folder with the model, or the Hub id. Raises `CheckpointError`."""
    where = _find_origin(checkpoint)
    if checkpoint.gguf_file is None:
        return where
    try:
        return str(dequantise(where, checkpoint.gguf_file, checkpoint.revision))
    except LookupError as error:
        raise CheckpointError(error.args[0]) from error
    except (OSError, HTTPError) as error:
        raise CheckpointError(explain(checkpoint, "GGUF file", error)) from error


def _find_origin(checkpoint: Checkpoint) -> str:
    """What the recipe names: the folder, or the Hub id."""
    try:
        path = path_of(locate(checkpoint.where))
    except LookupError as error:
        raise CheckpointError(error.args[0]) from None
    if path is NOWHERE:
        raise CheckpointError(
            f"checkpoint `{checkpoint.where[:80]} …` is neither a Hub id nor a folder: no path is like that."
        )
    return str(path.absolute()) if path.is_dir() else checkpoint.where


def pin(checkpoint: Checkpoint) -> Checkpoint:
    """With the commit that its revision stands for now, so that all its files are of one state; a folder as it is."""
    where = _find_origin(checkpoint)
    if where in CONFIG_MAPPING or Path(where).is_dir():
        return checkpoint
    return checkpoint.model_copy(update={"revision": find_commit(where, checkpoint.revision)})


def hash_weights(checkpoint: Checkpoint) -> str | None:
    """A hash of the weights in a checkpoint's folder; None for one of the Hub, whose commit says as much."""
    folder = Path(_find_origin(checkpoint))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return "-".join(hash_file(file) for file in files) or None


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Arguments of `from_pretrained` beside the name."""
    where = {"revision": checkpoint.revision} if checkpoint.revision else {}
    return {**where, "trust_remote_code": checkpoint.trust_remote_code}


def read_card(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoint's own card says that holds for what comes of it too; nothing where there is no card."""
    try:
        content = metadata_load(_find_file(checkpoint, CARD)) or {}
    except (OSError, ValueError, YAMLError, HTTPError, RecursionError):  # also: not in the cache
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: content[name] for name in INHERITED if _is_short(content.get(name))}


def _is_short(value: Any) -> bool:
    """Whether a value of somebody's card is a text or a list of texts that is not too long to be passed on."""
    texts = value if isinstance(value, list) else [value]
    return 0 < len(texts) <= MOST_TEXTS and all(isinstance(each, str) and 0 < len(each) <= LONGEST for each in texts)


def made_for_mean(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint of sentence-transformers says that the mean over its positions stands for a text."""
    try:
        content = json.loads(Path(_find_file(checkpoint, POOLING)).read_text(encoding="utf-8"))
    except (OSError, ValueError, HTTPError):
        return False
    return isinstance(content, dict) and content.get("pooling_mode_mean_tokens") is True


def _find_file(checkpoint: Checkpoint, name: str) -> Path:
    """Where a file of the checkpoint is to be found; it need not be there."""
    where = Path(_find_origin(checkpoint))
    return where / name if where.is_dir() else Path(hf_hub_download(str(where), name, revision=checkpoint.revision))


def explain(checkpoint: Checkpoint, part: str, error: Exception) -> str:
    """What to say when a part of a checkpoint, such as its tokenizer, can\'t be had."""
    name, reason = checkpoint.where, str(error).strip().split("\n")[0]
    if "trust_remote_code" in str(error):
        return (
            f"checkpoint `{name}` brings Python code of its own, which is not run.\n"
            "  If you trust it: `model.trust_remote_code=true` and --trust-remote-code on the command line."
        )
    if found := re.search(r"Unrecognized configuration class .*\.(\w+)'> for this kind of AutoModel: (\w+)", reason):
        return (
            f"checkpoint `{name}` is described by a {found[1]}, and transformers has no {found[2]} for such.\n"
            "  Take another checkpoint, or another task: `hf-sft list tasks`."
        )
    if Path(_find_origin(checkpoint)).is_dir():
        return f"checkpoint `{name}`: its {part} can't be loaded: {reason}"
    at = f" at revision `{checkpoint.revision}`" if checkpoint.revision else ""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    why = "the Hub is switched off (HF_HUB_OFFLINE) and it is not in the cache" if offline else reason
    return (
        f"checkpoint `{name}`{at} can't be had: there is no such folder here, and its {part} can't be fetched: {why}.\n"
        "  Check the name and the revision; `hf auth login` for private ones; or give a folder."
    )
