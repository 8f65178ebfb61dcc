"""The `model` block: from a checkpoint to a processor and a model; and which of its parameters are body, head and new."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_sft.block import Block
from hf_sft.errors import CheckpointError
from hf_sft.packages import locate
from hf_sft.tasks import Labels, Task


class Checkpoint(Block):
    """Where training starts: a checkpoint of the Hub, a folder, a finished run, or a folder inside an installed package."""

    checkpoint: str
    """A Hub id, a folder (a run folder too), or package:NAME/PATH for a folder inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; resolved to a commit in the run folder's recipe."""
    trust_remote_code: bool = False
    """Run Python that the checkpoint brings; the command line must say --trust-remote-code too."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its task's head, in float32, and what the load report says of it."""

    model: PreTrainedModel
    new: tuple[str, ...]
    """Parameters that the checkpoint did not bring: freshly drawn."""
    revision: str | None
    """The commit on the Hub; None for folders."""

    @property
    def body(self) -> nn.Module:
        """The pretrained encoder or decoder below the head."""
        return self.model.base_model

    @property
    def prefix(self) -> str:
        """What the names of the body's modules begin with."""
        return f"{self.model.base_model_prefix}."

    @cached_property
    def head(self) -> frozenset[str]:
        """Names of the head's parameters: all outside the body, the body's pooler, and whatever is new."""
        outside = (name for name, _ in self.model.named_parameters() if not name.startswith(self.prefix))
        pooler = (name for name, _ in self.model.named_parameters() if name.startswith(f"{self.prefix}pooler."))
        return frozenset((*outside, *pooler, *self.new))

    @cached_property
    def head_modules(self) -> list[str]:
        """The largest modules all of whose parameters are the head's."""

        def search(module: nn.Module, name: str) -> list[str]:
            names = [f"{name}.{part}" if name else part for part, _ in module.named_parameters()]
            if name and names and set(names) <= self.head:
                return [name]
            children = module.named_children()
            return [found for part, child in children for found in search(child, f"{name}.{part}" if name else part)]

        return search(self.model, "")


def load_processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, with a pad token, and with `model_max_length` cut to the positions of the model.

    Raises `CheckpointError`.
    """
    where = _where(checkpoint)
    config = _load_config(checkpoint, {})
    try:
        processor = AutoTokenizer.from_pretrained(where, **_source(checkpoint))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(_explain(checkpoint, "tokenizer", error)) from error
    if set(processor.get_vocab().values()) <= set(processor.all_special_ids):
        # transformers makes an empty tokenizer of a folder without tokenizer files, and every word becomes unknown.
        raise CheckpointError(
            f"checkpoint `{checkpoint.checkpoint}` brings no tokenizer: its vocabulary is empty.\n"
            "  Expected tokenizer.json or the vocabulary files beside its config.json."
        )
    if processor.pad_token is None:
        # GPT-2 was trained without padding. Its end token serves: whatever is padded is masked, and the config names
        # the same id, so that the head pools the last token before it (transformers #35352).
        processor.pad_token = processor.eos_token or processor.unk_token
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        processor.model_max_length = min(processor.model_max_length, positions)
    # Every architecture with positions of its own counts from the left: padding belongs on the right, also in what is
    # saved, since a plain `pipeline` passes no position_ids.
    processor.padding_side = "right"
    return processor


def load_model(checkpoint: Checkpoint, task: Task, labels: Labels | None, processor: Any) -> LoadedModel:
    """The checkpoint with the task's head, in float32 whatever it was saved in; safetensors only.

    Raises `CheckpointError` when it can't be had, or isn't a model for this task.
    """
    config = _load_config(checkpoint, task.config_fields(labels))
    config.pad_token_id = processor.pad_token_id
    where = _where(checkpoint)
    if Path(where).is_dir() and not any(Path(where).glob("*.safetensors")):
        pickled = ", ".join(path.name for path in Path(where).glob("*.bin"))
        found = f"only pickled ones ({pickled}), which can run code when loaded" if pickled else "none"
        raise CheckpointError(
            f"checkpoint `{checkpoint.checkpoint}`: expected weights in *.safetensors, found {found}.\n"
            "  Load the model once where you trust it, and save it with `save_pretrained`."
        )
    try:
        with _no_progress_bar():
            model, report = task.auto_model.from_pretrained(
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
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    names = {name for name, _ in model.named_parameters()}
    new = tuple(sorted(names & {*report["missing_keys"], *mismatched}))
    return LoadedModel(model.eval(), new, getattr(config, "_commit_hash", None))


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


def _load_config(checkpoint: Checkpoint, fields: dict[str, Any]) -> PretrainedConfig:
    where = _where(checkpoint)
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        adapter = (Path(where) / "adapter_config.json").is_file()
        what = "it holds a PEFT adapter; merge it first, and give the merged folder" if adapter else "it has no config.json"
        raise CheckpointError(f"checkpoint `{checkpoint.checkpoint}` is not a model folder: {what}.")
    try:
        return AutoConfig.from_pretrained(where, **_source(checkpoint), **fields)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(_explain(checkpoint, "config", error)) from error


def _where(checkpoint: Checkpoint) -> str:
    """The folder, or the Hub id."""
    try:
        found = Path(locate(checkpoint.checkpoint)).expanduser()
    except LookupError as error:
        raise CheckpointError(error.args[0]) from None
    return str(found) if found.is_dir() else checkpoint.checkpoint


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    where = {"revision": checkpoint.revision} if checkpoint.revision else {}
    return {**where, "trust_remote_code": checkpoint.trust_remote_code}


def _explain(checkpoint: Checkpoint, part: str, error: Exception) -> str:
    name, reason = checkpoint.checkpoint, str(error).strip().split("\n")[0]
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
