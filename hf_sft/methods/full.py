"""Full fine-tuning."""

from typing import Any, ClassVar

from transformers import PreTrainedModel

from hf_sft.config.training import Training
from hf_sft.methods import Method, Phase, unchanged
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.tasks import Task


class Full(Method):
    """Train all weights. The best score if there are enough rows; the most time and memory."""

    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-5,  # the upper end of what BERT's authors swept: https://huggingface.co/papers/1810.04805
        "num_train_epochs": 3,
        "warmup_steps": 0.1,  # large early steps undo pre-training: https://huggingface.co/papers/2006.04884
    }

    def phases(self, task: Task, training: Training, rows: int) -> tuple[Phase, ...]:
        return (Phase("full", self.complete(training, task, rows), move_everything, unchanged),)


def move_everything(loaded: LoadedModel) -> PreTrainedModel:
    return loaded.model.requires_grad_(True)
