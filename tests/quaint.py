"""A family of models that nobody has: a module has no name that another family gives it. Importing this makes it known."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class QuaintConfig(PreTrainedConfig):
    model_type = "quaint"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "girth",
        "num_hidden_layers": "storeys",
        "max_position_embeddings": "stretch",
    }

    def __init__(self, vocab_size: int = 64, girth: int = 32, storeys: int = 2, stretch: int = 64, **others: Any):
        self.vocab_size, self.girth, self.storeys, self.stretch = vocab_size, girth, storeys, stretch
        super().__init__(**others)


class Storey(nn.Module):
    def __init__(self, girth: int):
        super().__init__()
        self.ask, self.offer, self.carry, self.blend = (nn.Linear(girth, girth) for _ in range(4))
        self.level = nn.LayerNorm(girth)
        self.swell, self.shrink = nn.Linear(girth, 3 * girth), nn.Linear(3 * girth, girth)
        self.plane = nn.LayerNorm(girth)

    def forward(self, flow: Tensor, shown: Tensor) -> Tensor:
        heed = self.ask(flow) @ self.offer(flow).transpose(1, 2) / flow.shape[-1] ** 0.5
        heed = heed.masked_fill(~shown.unsqueeze(1), float("-inf")).softmax(-1)
        flow = self.level(flow + self.blend(heed @ self.carry(flow)))
        return self.plane(flow + self.shrink(torch.relu(self.swell(flow))))


class QuaintPreTrainedModel(PreTrainedModel):
    config_class = QuaintConfig
    base_model_prefix = "trunk"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class QuaintModel(QuaintPreTrainedModel):
    def __init__(self, config: QuaintConfig):
        super().__init__(config)
        self.lexicon, self.ruler = nn.Embedding(config.vocab_size, config.girth), nn.Embedding(config.stretch, config.girth)
        self.tower = nn.ModuleList(Storey(config.girth) for _ in range(config.storeys))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.lexicon

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, **_: Any
    ) -> BaseModelOutput:
        flow = self.lexicon(input_ids) if inputs_embeds is None else inputs_embeds
        flow = flow + self.ruler.weight[: flow.shape[1]]
        shown = torch.ones(flow.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for storey in self.tower:
            flow = storey(flow, shown)
        return BaseModelOutput(last_hidden_state=flow)


class QuaintForSequenceClassification(QuaintPreTrainedModel):
    def __init__(self, config: QuaintConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.trunk = QuaintModel(config)
        self.ponder, self.verdict = nn.Linear(config.girth, config.girth), nn.Linear(config.girth, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, labels: Any = None, **_: Any
    ) -> SequenceClassifierOutput:
        said = self.trunk(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **_)
        first = torch.tanh(self.ponder(said.last_hidden_state[:, 0]))
        hidden = (said.last_hidden_state,) if _.get("output_hidden_states") else None
        return SequenceClassifierOutput(logits=self.verdict(first), hidden_states=hidden)


AutoConfig.register("quaint", QuaintConfig)
AutoModel.register(QuaintConfig, QuaintModel)
AutoModelForSequenceClassification.register(QuaintConfig, QuaintForSequenceClassification)
