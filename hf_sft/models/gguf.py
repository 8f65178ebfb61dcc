"""A GGUF file as an ordinary checkpoint: dequantised once, in float32, into the cache.

transformers reads such a file, but trains nothing that is still quantised, and saves none of it.
"""

import functools
import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hf_sft.errors import first_line, nearest, suggest
from hf_sft.models.quiet import no_progress_bar
from hf_sft.storage.cache import cache_folder, digest, made_once

HEADER = b"GGUF"


def dequantise(where: str, name: str, revision: str | None) -> Path:
    """A folder with the model and the tokenizer of a file, which is in a folder or on the Hub.

    Raises `LookupError` with the reason, and `OSError` as the Hub does.
    """
    if find_spec("gguf") is None:
        raise LookupError('`model.gguf_file` needs a package that reads such files: pip install "hf-sft[gguf]"')
    file = Path(where) / name if Path(where).is_dir() else Path(hf_hub_download(where, name, revision=revision))
    if not file.is_file():
        there = sorted(path.name for path in file.parent.glob("*.gguf"))
        listed = f"  It has: {', '.join(there)}.{suggest(nearest(name, there))}" if there else "  It has no *.gguf at all."
        raise LookupError(f"`model.gguf_file`: `{where}` has no file `{name}`.\n{listed}")
    with file.open("rb") as begun:
        if begun.read(len(HEADER)) != HEADER:
            raise LookupError(f"`model.gguf_file`: `{name}` is not a GGUF file: it does not begin with {HEADER.decode()}.")
    folder = cache_folder("dequantised") / digest(_hash_file(file.resolve(), file.stat().st_mtime_ns), version("transformers"))
    return made_once(folder, functools.partial(_write, file))


@functools.cache
def _hash_file(file: Path, changed: int) -> str:
    """Of a file as it was when it was last changed."""
    with file.open("rb") as read:
        return hashlib.file_digest(read, "sha256").hexdigest()


def _write(file: Path, folder: Path) -> None:
    dense = GgufConfig(dequantize=True)
    try:
        with no_progress_bar():
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=dense
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, RuntimeError, NotImplementedError, ImportError) as error:
        reason = first_line(error)
        raise LookupError(
            f"`model.gguf_file`: `{file.name}` can't be dequantised: {reason}\n"
            "  transformers reads the language models that it lists under GGUF, with their tokenizers."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
