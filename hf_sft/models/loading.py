"""From a checkpoint to a processor and a model."""

import copy
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_sft.errors import CheckpointError, first_line, list_few
from hf_sft.models.checkpoint import Checkpoint, explain, find_checkpoint, load_config, read_card, source_of
from hf_sft.models.label_head import fit_head
from hf_sft.models.loaded_model import LoadedModel, prefix_of
from hf_sft.models.quiet import no_progress_bar
from hf_sft.storage.atomic_folder import open_to_readers
from hf_sft.tasks import Labels, Task

GENERATION = "generation_config.json"
"""How a model writes, in a folder of it."""
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(
    checkpoint: Checkpoint, max_length: int | None = None, auto: Any = AutoTokenizer, trained: Path | None = None
) -> Any:
    """What the checkpoint brings to make inputs of rows, loaded by `auto`; or the tokenizer that was trained for it.

    A tokenizer gets a pad token; its `model_max_length` is `max_length`, or its own, but never more than the model has
    positions. Raises `CheckpointError`.
    """
    config, source = load_config(checkpoint, {}), checkpoint
    if trained or isinstance(checkpoint.tokenizer, str):
        source = Checkpoint(checkpoint=str(trained or checkpoint.tokenizer), trust_remote_code=checkpoint.trust_remote_code)
    where = Path(find_checkpoint(source))
    if auto is not AutoTokenizer and where.is_dir() and not any((where / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}` brings no image processor: expected {IMAGE_PROCESSOR_FILES[0]} beside its "
            "config.json.\n  Is it a model for pictures?"
        )
    part = "tokenizer" if auto is AutoTokenizer else "image processor"
    try:
        processor = auto.from_pretrained(str(where), **source_of(source))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(explain(source, part, error)) from error
    if auto is not AutoTokenizer:
        return processor
    if set(processor.get_vocab().values()) <= set(processor.all_special_ids):
        # transformers makes an empty tokenizer of a folder without tokenizer files, and every word becomes unknown.
        raise CheckpointError(
            f"checkpoint `{checkpoint.where}` brings no tokenizer: its vocabulary is empty.\n"
            "  Expected tokenizer.json or the vocabulary files beside its config.json."
        )
    if known := [token for token in checkpoint.add_tokens if token in processor.get_vocab()]:
        raise CheckpointError(
            f"`model.add_tokens`: the tokenizer of `{checkpoint.where}` has {', '.join(map(repr, known))} already."
            "  Leave it out."
        )
    processor.add_tokens([*checkpoint.add_tokens])
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
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    try:
        with torch.device("meta"):
            body = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, RuntimeError, NotImplementedError, ImportError):  # not every architecture is built without weights
        return positions
    tables = [each for each in body.modules() if isinstance(each, nn.Embedding) and each is not body.get_input_embeddings()]
    rows = [
        table.num_embeddings - (table.padding_idx + 1 if table.padding_idx is not None else table.num_embeddings - positions)
        for table in tables
        if 0 <= table.num_embeddings - positions <= 8
    ]
    return min([positions, *rows])


def load_model(checkpoint: Checkpoint, task: Task, labels: Labels | None, processor: Any) -> LoadedModel:
    """The checkpoint with the task's head, in float32 whatever it was saved in; safetensors only.

    Of a head that the checkpoint brings, each of our classes gets the row of the class of that name. Raises
    `CheckpointError` when the checkpoint can't be had, or isn't a model for this task.
    """
    theirs = load_config(checkpoint, {})
    config = load_config(checkpoint, task.config_fields(labels))
    if hasattr(processor, "pad_token_id"):
        config.pad_token_id = processor.pad_token_id
    if checkpoint.from_config is not None:
        return _draw_model(checkpoint, task, config, processor)
    model, report = _load_weights(checkpoint, task, config)
    new = _find_new(checkpoint, model, report)
    _say_whether_tied(model)
    notes: list[str] = []
    if labels is not None:
        missing = {*report["missing_keys"]}
        new, notes = fit_head(model, theirs, labels, new, missing, lambda: _load_weights(checkpoint, task, theirs)[0])
    added = _embed(checkpoint.add_tokens, model, processor)
    if added:
        how = "begin at the mean of the others, and are trained where the method trains embeddings, and under LoRA"
        notes.append(f"{len(added)} token(s) are added ({list_few(checkpoint.add_tokens)}): their embeddings {how}.")
    _require_room(checkpoint, model, processor)
    return LoadedModel(
        model.eval(), tuple(sorted(new)), checkpoint.revision, tuple(notes), read_card(checkpoint), untrained_tokens=added
    )


def _embed(tokens: Sequence[str], model: PreTrainedModel, processor: Any) -> tuple[int, ...]:
    """Give tokens that are new a row of the embeddings, and of the output layer: the mean of the others. Returns their ids."""
    if not tokens:
        return ()
    ids = processor.convert_tokens_to_ids([*tokens])
    table: Any = model.get_input_embeddings()
    if len(processor) > table.num_embeddings:
        model.resize_token_embeddings(len(processor), mean_resizing=False)
    old = torch.tensor([i for i in range(len(processor)) if i not in {*ids}])
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for name in ("weight", "bias"):
                rows: Any = getattr(layer, name, None)
                if isinstance(rows, torch.Tensor):
                    rows[ids] = rows[old].mean(0)
    return tuple(ids)


def _say_whether_tied(model: PreTrainedModel) -> None:
    """transformers' config of T5 says that the output layer is tied to the embeddings, whatever the checkpoint holds; what
    reads that (PEFT) would tie them."""
    output = model.get_output_embeddings()
    if output is not None and getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = output.weight is model.get_input_embeddings().weight


def _draw_model(checkpoint: Checkpoint, task: Task, config: PretrainedConfig, processor: Any) -> LoadedModel:
    """The model of a config, with random weights, and as many embeddings as the tokenizer has tokens."""
    if checkpoint.tokenizer is not None and "vocab_size" not in checkpoint.config:
        config.vocab_size = len(processor)
        config.bos_token_id, config.eos_token_id = processor.bos_token_id, processor.eos_token_id
    try:
        model = task.auto_model.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"`model.from_config: {checkpoint.from_config}` can't be built: {first_line(error)}\n  Check `model.config`."
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
    where = find_checkpoint(checkpoint)
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
        with no_progress_bar():
            return task.auto_model.from_pretrained(
                where,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **source_of(checkpoint),
                **quantisation(checkpoint, task, config),
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(explain(checkpoint, "model", error)) from error


def quantisation(checkpoint: Checkpoint, task: Task, config: PretrainedConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights in 4 bits, as in QLoRA: all linear layers of the body.

    Raises `CheckpointError` when the package that does it is not there. https://huggingface.co/papers/2305.14314
    """
    if not checkpoint.load_in_4bit:
        return {}
    if find_spec("bitsandbytes") is None:
        raise CheckpointError('`model.load_in_4bit` needs the package bitsandbytes: pip install "hf-sft[qlora]"')
    with torch.device("meta"):
        head = LoadedModel(task.auto_model.from_config(config), (), None).head_modules
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    how = BitsAndBytesConfig(**four_bits, bnb_4bit_compute_dtype="bfloat16", llm_int8_skip_modules=head or None)
    return {"quantization_config": how}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter. Raises `CheckpointError` for one whose weights are pickled."""
    if not (folder / "adapter_config.json").is_file():
        return False
    if not (folder / "adapter_model.safetensors").is_file():
        pickled = any(folder.glob("adapter_model.bin"))
        present = "only pickled ones (adapter_model.bin), which can run code when loaded" if pickled else "none"
        raise CheckpointError(f"`{folder}`: expected an adapter's weights in adapter_model.safetensors, found {present}.")
    return True


def merge_command(run: str) -> str:
    """The line of shell that makes an ordinary checkpoint of a run that was saved as an adapter."""
    python = (
        f"from hf_sft.runs.prepare import load_run; run = load_run({run!r}); "
        f"[part.save_pretrained({f'{run}_merged'!r}) for part in (run.model.merge_and_unload(), run.processor)]"
    )
    return f"python -c {shlex.quote(python)}"


def _find_new(checkpoint: Checkpoint, model: PreTrainedModel, report: dict[str, Any]) -> set[str]:
    """The parameters that the checkpoint did not bring. Raises `CheckpointError` when parts of the body are among them."""
    held = {key[0]: tuple(key[1]) for key in report["mismatched_keys"] if not isinstance(key, str)}
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    new = set(shapes) & {*report["missing_keys"], *mismatched}
    prefix = prefix_of(model)
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


def save_model(model: Any, config: PretrainedConfig, processor: Any, folder: Path) -> None:
    """In Hugging Face's own files; the config beside an adapter too, since it names the classes."""
    with no_progress_bar():
        # PEFT asks the Hub for the base's vocabulary otherwise; nothing here changes one.
        model.save_pretrained(folder, **({"save_embedding_layers": False} if isinstance(model, PeftModel) else {}))
    if hasattr(config, "quantization_config"):  # of what the adapter is put on: an ordinary checkpoint, quantised once more
        config = copy.deepcopy(config)
        delattr(config, "quantization_config")
    config.save_pretrained(folder)
    if isinstance(model, PeftModel) and model.can_generate():  # PEFT leaves it to the base, which may end its texts otherwise
        model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    open_to_readers(folder)
