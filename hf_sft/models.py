"""The `model` block: from a checkpoint to a processor and a model."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import logging

from hf_sft.anatomy import LoadedModel
from hf_sft.block import Block
from hf_sft.errors import CheckpointError, nearest, suggest
from hf_sft.heads import fit_head
from hf_sft.packages import locate
from hf_sft.tasks import Labels, Task
from hf_sft.vocabulary import NewTokenizer

IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


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
    revision: str | None = None
    """Branch, tag or commit on the Hub; resolved to a commit in the run folder's recipe."""
    trust_remote_code: bool = False
    """Run Python that the checkpoint brings; the command line must say --trust-remote-code too."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "Checkpoint":
        if (self.checkpoint is None) is (self.from_config is None):
            given = "both are" if self.checkpoint else "none is"
            raise PydanticCustomError("beginning", "needs `checkpoint` or `from_config`; {given} given", {"given": given})
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

    @property
    def name(self) -> str:
        """What to call it."""
        return self.checkpoint or f"{self.from_config} with random weights"

    @property
    def where(self) -> str:
        """What is read: the checkpoint, or the one whose config is taken."""
        return str(self.checkpoint or self.from_config)


def load_processor(
    checkpoint: Checkpoint, max_length: int | None = None, auto: Any = AutoTokenizer, trained: Path | None = None
) -> Any:
    """What the checkpoint brings to make inputs of rows, loaded by `auto`; or the tokenizer that was trained for it.

    A tokenizer gets a pad token; its `model_max_length` is `max_length`, or its own, but never more than the model has
    positions. Raises `CheckpointError`.
    """
    config, source = _load_config(checkpoint, {}), checkpoint
    if trained or isinstance(checkpoint.tokenizer, str):
        source = Checkpoint(checkpoint=str(trained or checkpoint.tokenizer), trust_remote_code=checkpoint.trust_remote_code)
    where = Path(_where(source))
    if auto is not AutoTokenizer and where.is_dir() and not any((where / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}` brings no image processor: expected {IMAGE_PROCESSOR_FILES[0]} beside its "
            "config.json.\n  Is it a model for pictures?"
        )
    part = "tokenizer" if auto is AutoTokenizer else "image processor"
    try:
        processor = auto.from_pretrained(str(where), **_source(source))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(_explain(source, part, error)) from error
    if auto is not AutoTokenizer:
        return processor
    if set(processor.get_vocab().values()) <= set(processor.all_special_ids):
        # transformers makes an empty tokenizer of a folder without tokenizer files, and every word becomes unknown.
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}` brings no tokenizer: its vocabulary is empty.\n"
            "  Expected tokenizer.json or the vocabulary files beside its config.json."
        )
    if processor.pad_token is None:
        # GPT-2 was trained without padding. Its end token serves: whatever is padded is masked, and the config names
        # the same id, so that the head pools the last token before it (transformers #35352).
        processor.pad_token = processor.eos_token or processor.unk_token
    positions = count_positions(config, checkpoint.trust_remote_code)
    processor.model_max_length = min(max_length or processor.model_max_length, positions or VERY_LARGE_INTEGER)
    # Every architecture with positions of its own counts from the left: padding belongs on the right, also in what is
    # saved, since a plain `pipeline` passes no position_ids.
    processor.padding_side = "right"
    return processor


def count_positions(config: PretrainedConfig, trust_remote_code: bool = False) -> int | None:
    """How many tokens the model takes: the rows of its position table that tokens can have; without a table, what its
    config says; None where there is no end (XLNet says -1).

    RoBERTa's table begins after its padding index, BART's has two rows to spare.
    """
    said = getattr(config, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return None
    try:
        with torch.device("meta"):
            body = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, RuntimeError, NotImplementedError, ImportError):  # not every architecture is built without weights
        return said
    tables = [each for each in body.modules() if isinstance(each, nn.Embedding) and each is not body.get_input_embeddings()]
    rows = [
        table.num_embeddings - (table.padding_idx + 1 if table.padding_idx is not None else table.num_embeddings - said)
        for table in tables
        if 0 <= table.num_embeddings - said <= 8
    ]
    return min([said, *rows])


def load_model(checkpoint: Checkpoint, task: Task, labels: Labels | None, processor: Any) -> LoadedModel:
    """The checkpoint with the task's head, in float32 whatever it was saved in; safetensors only.

    Of a head that the checkpoint brings, each of our classes gets the row of the class of that name. Raises
    `CheckpointError` when the checkpoint can't be had, or isn't a model for this task.
    """
    theirs = _load_config(checkpoint, {})
    config = _load_config(checkpoint, task.config_fields(labels))
    if hasattr(processor, "pad_token_id"):
        config.pad_token_id = processor.pad_token_id
    if checkpoint.from_config is not None:
        return _draw_model(checkpoint, task, config, processor)
    model, report = _load_weights(checkpoint, task, config)
    new = _find_new(checkpoint, model, report)
    notes: list[str] = []
    if labels is not None:
        missing = {*report["missing_keys"]}
        new = fit_head(model, theirs, labels, new, missing, lambda: _load_weights(checkpoint, task, theirs)[0], notes)
    _require_room(checkpoint, model, processor)
    return LoadedModel(model.eval(), tuple(sorted(new)), getattr(config, "_commit_hash", None), tuple(notes))


def _draw_model(checkpoint: Checkpoint, task: Task, config: PretrainedConfig, processor: Any) -> LoadedModel:
    """The model of a config, with random weights, and as many embeddings as the tokenizer has tokens."""
    if checkpoint.tokenizer is not None and "vocab_size" not in checkpoint.config:
        config.vocab_size = len(processor)
        config.bos_token_id, config.eos_token_id = processor.bos_token_id, processor.eos_token_id
    try:
        model = task.auto_model.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"`model.from_config: {checkpoint.from_config}` can't be built: {str(error).strip().splitlines()[0]}\n"
            "  Check `model.config`."
        ) from error
    _require_room(checkpoint, model, processor)
    count = sum(parameter.numel() for parameter in model.parameters())
    drawn = f"all {count:,} weights are drawn at random: {checkpoint.from_config}, from its config."
    return LoadedModel(model.eval(), (), None, (drawn,))


def _require_room(checkpoint: Checkpoint, model: PreTrainedModel, processor: Any) -> None:
    """Raises `CheckpointError` when the tokenizer has tokens that the model has no embeddings for."""
    table = model.get_input_embeddings() if hasattr(processor, "get_vocab") else None
    if isinstance(table, nn.Embedding) and len(processor) > table.num_embeddings:
        raise CheckpointError(
            f"checkpoint `{checkpoint.name}`: its tokenizer has {len(processor):,} tokens, of which only the first "
            f"{table.num_embeddings:,} have embeddings.\n  Expected a tokenizer that belongs to the model."
        )


def _load_weights(checkpoint: Checkpoint, task: Task, config: PretrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    where = _where(checkpoint)
    if Path(where, "adapter_config.json").is_file() and not any(Path(where).glob("model*.safetensors")):
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}` holds a PEFT adapter, not a whole model.  Merge it first:\n"
            f"  {merge_command(where)}\n"
            f"  and start from `{where}_merged`; or train that run with `method.merge=true`."
        )
    if Path(where).is_dir() and not any(Path(where).glob("*.safetensors")):
        pickled = ", ".join(path.name for path in Path(where).glob("*.bin"))
        present = f"only pickled ones ({pickled}), which can run code when loaded" if pickled else "none"
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}`: expected weights in *.safetensors, found {present}.\n"
            "  Load the model once where you trust it, and save it with `save_pretrained`."
        )
    try:
        with _no_progress_bar():
            return task.auto_model.from_pretrained(
                where,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_source(checkpoint),
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(_explain(checkpoint, "model", error)) from error


def merge_command(run: str) -> str:
    """The line of shell that makes an ordinary checkpoint of a run that was saved as an adapter."""
    python = (
        f"from hf_sft.runs import load_run; run = load_run({run!r}); "
        f"[part.save_pretrained({f'{run}_merged'!r}) for part in (run.model.merge_and_unload(), run.processor)]"
    )
    return f"python -c {shlex.quote(python)}"


def _find_new(checkpoint: Checkpoint, model: PreTrainedModel, report: dict[str, Any]) -> set[str]:
    """The parameters that the checkpoint did not bring. Raises `CheckpointError` when parts of the body are among them."""
    held = {key[0]: tuple(key[1]) for key in report["mismatched_keys"] if not isinstance(key, str)}
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    new = set(shapes) & {*report["missing_keys"], *mismatched}
    prefix = f"{model.base_model_prefix}."
    body = {name for name in shapes if name.startswith(prefix) and not name.startswith(f"{prefix}pooler.")}
    if lacking := sorted(body & new):
        first = lacking[0]
        what = f"`{first}` of shape {held[first]}" if first in held else f"no `{first}`"
        beside = [f"`{key}`" for key in sorted(report["unexpected_keys"])[:3]]
        other = f"  It holds {', '.join(beside)} …, which this model has not." if beside else ""
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}` does not fit {type(model).__name__}: {len(lacking)} of the {len(body)} "
            f"parameters of its body are missing.\n  Found {what}; expected shape {shapes[first]}.{other}\n"
            "  Check that the weights belong to the config.json beside them."
        )
    return new


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Reading a file from disk needs none."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model(model: Any, config: PretrainedConfig, processor: Any, folder: Path) -> None:
    """In Hugging Face's own files; the config beside an adapter too, since it names the classes."""
    with _no_progress_bar():
        model.save_pretrained(folder)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    os.umask(mask := os.umask(0))
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read


def _load_config(checkpoint: Checkpoint, fields: dict[str, Any]) -> PretrainedConfig:
    where, fields = _where(checkpoint), {**checkpoint.config, **fields}
    if checkpoint.from_config in CONFIG_MAPPING:
        return _with_fields(checkpoint, AutoConfig.for_model(where), fields)
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        adapter = (Path(where) / "adapter_config.json").is_file()
        what = "it holds a PEFT adapter; merge it first, and give the merged folder" if adapter else "it has no config.json"
        raise CheckpointError(f"checkpoint `{checkpoint.where}` is not a model folder: {what}.")
    try:
        config = AutoConfig.from_pretrained(where, **_source(checkpoint), **({} if checkpoint.from_config else fields))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(_explain(checkpoint, "config", error)) from error
    return _with_fields(checkpoint, config, fields) if checkpoint.from_config else config


def _find_unknown(fields: dict[str, Any], config: PretrainedConfig) -> str | None:
    """What to say of the first field that a config does not know."""
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
        return type(config).from_dict({**config.to_dict(), **fields})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"`model.config` makes no config of {config.model_type}: {reason}") from error


def _where(checkpoint: Checkpoint) -> str:
    """The folder, or the Hub id."""
    try:
        path = Path(locate(checkpoint.where)).expanduser()
    except LookupError as error:
        raise CheckpointError(error.args[0]) from None
    return str(path) if path.is_dir() else checkpoint.where


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    where = {"revision": checkpoint.revision} if checkpoint.revision else {}
    return {**where, "trust_remote_code": checkpoint.trust_remote_code}


def _explain(checkpoint: Checkpoint, part: str, error: Exception) -> str:
    name, reason = checkpoint.where, str(error).strip().split("\n")[0]
    if "trust_remote_code" in str(error):
        return (
            f"checkpoint `{name}` brings Python code of its own, which is not run.\n"
            "  If you trust it: `model.trust_remote_code=true` and --trust-remote-code on the command line."
        )
    if Path(_where(checkpoint)).is_dir():
        return f"checkpoint `{name}`: its {part} can't be loaded: {reason}"
    at = f" at revision `{checkpoint.revision}`" if checkpoint.revision else ""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    why = "the Hub is switched off (HF_HUB_OFFLINE) and it is not in the cache" if offline else reason
    return (
        f"checkpoint `{name}`{at} can't be had: there is no such folder here, and its {part} can't be fetched: {why}.\n"
        "  Check the name and the revision; `hf auth login` for private ones; or give a folder."
    )
