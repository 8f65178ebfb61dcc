"""What a training looked like, step by step."""

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
    """Tokens that the steps sent through the body, without padding; none where the head learns on stored features."""
    padded_tokens: int = 0
    """The same with padding."""
    micro_batch_tokens: int = 0
    """In one forward pass, at most; less than the machine's where the memory was not enough for that."""
    peak_memory_bytes: int = 0
    """On accelerators, of the device; otherwise the process's largest resident size so far."""
    dropout: str = "torch"
    """Whose dropout ran: `torch`, or `hf_sft` (the same, four elements to a random number: speedups/cpu_dropout.py)."""
    stored_features: bool = False
    """The body ran once, and the head was trained on what it gave."""
    stored_layers: int = 0
    """So many of the lowest layers ran once, and the rest was trained on what they gave."""
    skipped: list[int] = field(default_factory=list)
    """Steps that were left out, since their loss or gradient was not finite."""
    best_step: int | None = None
    """The evaluation whose weights were saved."""
    parameters: int = 0
    trainable: int = 0
    """How many of the parameters moved."""

    def facts(self) -> dict[str, Any]:
        """The phase as report.json has it, but for its curves."""
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
