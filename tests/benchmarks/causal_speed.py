"""Tokens per second of causal_lm against the plain Trainer on concatenated blocks, as transformers' run_clm makes them.

    python -m tests.benchmarks.causal_speed TEXT [--steps 25] [--rounds 2]

One recipe, one set of random weights, as many tokens per step, one precision, no evaluation. The two take turns, each time in
a process of its own; the first five steps are not counted. Ours keeps documents apart, and drops out by the same rates.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from hf_sft.config.process import use_memory_well
from tests.benchmarks.turns import Watch, medians, take_turns

BLOCK, ROWS = 256, 16
SIZE = {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": BLOCK}


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("text")
    asked.add_argument("--steps", type=int, default=25)
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--side", choices=["hf_sft", "plain"])
    asked.add_argument("--start", help="the folder with the weights")
    given = asked.parse_args()
    if given.side:
        use_memory_well()  # as the command does, for all sides
        print(json.dumps((train_ours if given.side == "hf_sft" else train_plain)(given.text, given.start, given.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(given.text, folder)
        words = [given.text, f"--steps={given.steps}", f"--start={folder}"]
        speeds = medians(take_turns(__spec__.name, ["hf_sft", "plain"], given.rounds, words), "tokens_per_second")
    print(f"ratio {speeds['hf_sft'] / speeds['plain']:.2f}")


def prepare(text: str, folder: str) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_sft.models.new_tokenizer import NewTokenizer, train_tokenizer

    tokenizer = train_tokenizer(NewTokenizer(type="bpe", vocab_size=2048), Path(text).read_text().split("\n\n"))
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**SIZE, **ids, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def figures(watch: Watch, losses: list[float]) -> dict[str, float]:
    return {"tokens_per_second": watch.rate(), "loss": statistics.mean(losses[-5:])}


def train_ours(text: str, start: str, steps: int) -> dict[str, float]:
    import hf_sft

    training = {"batch_size": ROWS, "max_steps": steps, "learning_rate": 1e-3, "eval_strategy": "no", "disable_tqdm": True}
    recipe = {
        "model": {"checkpoint": start},
        "data": {"dataset": "text", "data_files": text, "sample_by": "document"},
        "task": {"type": "causal_lm", "max_length": BLOCK},
        "method": {"type": "full"},
        "training": training,
        "output": {"folder": f"{start}/run"},
    }
    trainer: Any = hf_sft.build_trainer(recipe)
    watch = Watch(done=lambda: trainer.curve.tokens)
    trainer.add_callback(watch)
    trainer.train()
    trainer.gather_losses()
    return figures(watch, trainer.curve.losses)


def train_plain(text: str, start: str, steps: int) -> dict[str, float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

    from hf_sft.config.machine import resolve_machine
    from hf_sft.config.training import Training

    tokenizer: Any = AutoTokenizer.from_pretrained(start)
    parts = Path(text).read_text().split("\n\n")
    ids = [i for part in parts for i in tokenizer(f"{part}\n\n", add_special_tokens=False)["input_ids"]]
    blocks = [ids[at : at + BLOCK] for at in range(0, len(ids) - BLOCK, BLOCK)]
    arguments = TrainingArguments(
        output_dir=f"{start}/plain",
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        learning_rate=1e-3,
        warmup_steps=0.1,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        bf16=resolve_machine(Training()).precision == "bf16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": blocks, "labels": blocks}),
        data_collator=default_data_collator,
    )
    watch = Watch(ROWS * BLOCK)
    trainer.add_callback(watch)
    trainer.train()
    return figures(watch, [float(each["loss"]) for each in trainer.state.log_history if "loss" in each])


if __name__ == "__main__":
    main()
