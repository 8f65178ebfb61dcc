"""What the machine decides: devices, processes, precision, the size of a micro-batch."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState

from hf_sft.config.process import runs_on_cpu
from hf_sft.config.training import Training
from hf_sft.errors import RecipeError


@dataclass(frozen=True)
class Machine:
    """What the machine decides, resolved once by rule and written to the run folder."""

    device: str
    """`cpu`, `cuda`, `mps` …"""
    processes: int
    precision: str
    """`bf16`, `fp16` or `fp32`: what matrix products run in; weights are always float32."""
    micro_batch_tokens: int
    """Tokens, padding included, in one forward pass."""
    quiet: bool = False
    """No progress bars: nobody watches."""

    def autocast(self) -> torch.autocast:
        """The run's precision, for a forward pass; nothing in fp32."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device, dtype=dtype, enabled=self.precision != "fp32")

    def facts(self) -> dict[str, Any]:
        """What report.json says of the machine."""
        return {name: getattr(self, name) for name in ("device", "processes", "precision", "micro_batch_tokens")}


MICRO_BATCH_TOKENS = {"cpu": 1024, "other": 16384}
"""Small, so that sorting by length can take the padding away: on two cores a step of 32 rows of 256 tokens (MiniLM,
bfloat16) took 3.8 s in micro-batches of 1024 tokens, 3.6 s of 2048, 4.2 s of 8192. The figure for accelerators was not
measured here."""


def resolve_machine(training: Training) -> Machine:
    """Devices and processes from Accelerate; precision from the recipe, else from Accelerate, else from the hardware.

    Raises `RecipeError` when the launcher started other processes than those that found each other.
    """
    for engine in ("DeepSpeed", "FSDP", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "").lower() in ("1", "true"):
            raise RecipeError(
                f"the Accelerate configuration asks for {engine}, which our training step does not serve yet.\n"
                "  Use a configuration with whole models on each device, like accelerate_configs/multi_gpu.yaml."
            )
    state = PartialState(cpu=runs_on_cpu())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise RecipeError(
            f"{started} processes were started, but only {state.num_processes} found each other.\n"
            "  Launch with `accelerate launch --config_file accelerate_configs/cpu_multi.yaml -m hf_sft …`."
        )
    if training.batch_size < state.num_processes:
        raise RecipeError(
            f"`training.batch_size` is {training.batch_size}, but there are {state.num_processes} processes, some of which "
            "would have no rows.\n  Raise it to at least as many, or launch fewer."
        )
    device = torch.device(state.device or "cpu").type
    return Machine(
        device=device,
        processes=state.num_processes,
        precision=_precision(training, device),
        micro_batch_tokens=training.micro_batch_tokens or MICRO_BATCH_TOKENS.get(device, MICRO_BATCH_TOKENS["other"]),
        quiet=not state.is_main_process or training.disable_tqdm is True,
    )


def _precision(training: Training, device: str) -> str:
    if training.bf16 and training.fp16:
        raise RecipeError("`training.bf16` and `training.fp16` can't both be true.  Keep one of them.")
    if training.bf16 or training.fp16:
        return "bf16" if training.bf16 else "fp16"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if training.bf16 is None and (launched == "bf16" or (launched == "fp16" and training.fp16 is None)):
        return launched
    return "bf16" if training.bf16 is None and _has_native_bf16(device) else "fp32"


def _has_native_bf16(device: str) -> bool:
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
