"""The training curve of a phase."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingCurve:
    """One phase: the loss of every step, the scores of every evaluation, and what it cost, over all processes."""

    name: str
    losses: list[float] = field(default_factory=list)
    """Mean loss per item, one per optimizer step."""
    learning_rates: list[float] = field(default_factory=list)
    """The highest rate of each optimizer step."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """`step`, and the validation metrics after it."""
    seconds: float = 0.0
    examples: int = 0
    """Rows seen, with repetition."""
    tokens: int = 0
    """Tokens through the body in training steps, without padding; 0 if the head is trained on stored features."""
    padded_tokens: int = 0
    """The same with padding."""
    micro_batch_tokens: int = 0
    """Maximum in one forward pass; smaller than the machine's if the memory did not suffice."""
    peak_memory_bytes: int = 0
    """On accelerators, of the device; otherwise the process's largest resident size so far."""
    dropout: str = "torch"
    """The dropout that ran: `torch`, or `hf_sft` (the same, four elements to a random number: speedups/cpu_dropout.py)."""
    stored_features: bool = False
    """True if the body ran once, and the head was trained on its stored outputs."""
    stored_layers: int = 0
    """Number of lowest layers that ran once; the rest was trained on their stored outputs."""
    skipped: list[int] = field(default_factory=list)
    """Steps that were skipped because their loss or gradient was not finite."""
    best_step: int | None = None
    """The evaluation whose weights were saved."""
    parameters: int = 0
    trainable: int = 0
    """Number of trainable parameters."""

    def facts(self) -> dict[str, Any]:
        """The phase as in report.json, without its curves."""
        seconds = max(self.seconds, 1e-9)
        return {
            "name": self.name,
            "steps": len(self.losses),
            "seconds": self.seconds,
            "examples_per_second": self.examples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "padding_share": 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0,
            "peak_memory_bytes": self.peak_memory_bytes,
            "micro_batch_tokens": self.micro_batch_tokens,
            "dropout": self.dropout,
            "stored_features": self.stored_features,
            "stored_layers": self.stored_layers,
            "skipped": self.skipped,
            "best_step": self.best_step,
        }
