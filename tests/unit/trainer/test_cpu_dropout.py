"""Dropout on a CPU drops what it says, the same for the same seed, and passes gradients where it keeps."""

import pytest
import torch
from torch import nn

from hf_sft.trainer.speedups.cpu_dropout import CpuDropout, drop


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_asked_share_is_dropped_and_the_mean_is_kept(p, dtype):
    torch.manual_seed(0)
    dropped = drop(torch.ones(1000, 1003, dtype=dtype), p)
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=2e-3)
    assert dropped.float().mean().item() == pytest.approx(1, abs=5e-3)
    by_lane = (dropped.flatten()[: 1000 * 1000].view(-1, 4) == 0).float().mean(0)
    assert by_lane.tolist() == pytest.approx([p] * 4, abs=3e-3)
    neighbours = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
    assert neighbours.float().mean().item() == pytest.approx(p * p, abs=2e-3)


def test_modules_use_it_while_it_is_active_and_only_in_training():
    layer, ones = nn.Dropout(0.5), torch.ones(4, 7)
    with CpuDropout():
        torch.manual_seed(1)
        first = layer(ones)
        torch.manual_seed(1)
        assert torch.equal(layer(ones), first)
        assert torch.equal(drop(ones, 0.5, training=False), ones)
        assert torch.equal(layer.eval()(ones), ones)
    torch.manual_seed(1)
    assert torch.equal(drop(ones, 0.5), first)


def test_gradients_flow_where_elements_are_kept():
    weights = torch.ones(50, requires_grad=True)
    dropped = drop(weights, 0.5)
    dropped.sum().backward()
    assert torch.equal(weights.grad, dropped.detach())


def test_an_interrupt_while_pytorch_has_taken_the_mode_off_stays_one():
    with pytest.raises(KeyboardInterrupt), CpuDropout():
        torch.overrides._pop_mode()
        raise KeyboardInterrupt
