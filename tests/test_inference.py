import torch
from torch import nn

from vaezoo.inference import evaluation_mode


def test_every_submodules_own_mode_comes_back():
    """A user who froze the encoder's batch norm finds it frozen after a reconstruction."""
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    module[1][0].eval()
    modes = [part.training for part in module.modules()]
    with evaluation_mode(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in module.modules()] == modes
    assert torch.is_grad_enabled()
