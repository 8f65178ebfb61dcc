"""Which modules stay in evaluation mode while others train."""

from torch import nn

from hf_sft.models.loaded_model import LoadedModel

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def frozen_modules(loaded: LoadedModel, model: nn.Module) -> list[nn.Module]:
    """The largest frozen modules of the body: their dropout is off, since there is nothing to regularise.

    And every batch norm: it stays at the checkpoint's statistics. Those of a micro-batch would depend on how the step is cut.
    """

    def search(module: nn.Module) -> list[nn.Module]:
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            return [module]
        holds_layers = any(isinstance(part, nn.ModuleList) for part in module.modules())
        return [found for child in module.children() for found in search(child)] if holds_layers else []

    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    return [*search(loaded.body), *norms]
