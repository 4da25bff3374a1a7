"""Muon: its effect on a kernel, and AdamW for all other parameters."""

import torch
from torch import nn

from triptych.models.muon import Muon


def stepped(kind, **keys):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 3))
    before = [p.detach().clone() for p in layers.parameters()]
    optimizer = kind([{"params": list(layers.parameters())}], lr=0.01, weight_decay=0.2, **keys)
    x = torch.randn(5, 1, 6, 6)

    def closure():
        optimizer.zero_grad()
        loss = layers(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return before, list(layers.parameters()), optimizer


def test_muon_orthogonalizes_square_kernels_and_uses_adamw_elsewhere():
    before, after, optimizer = stepped(Muon, kernels_lr=0.1, kernels_decay=0.5)
    for p, theirs in zip(after, stepped(torch.optim.AdamW)[1], strict=True):
        assert torch.equal(p, theirs) == (p.shape != (8, 8, 3, 3))
    update = (before[2] * (1 - 0.1 * 0.5) - after[2]).flatten(1) / 0.1
    assert torch.linalg.svdvals(update).sub(0.95).abs().max() < 0.3
    assert [len(group["params"]) for group in optimizer.param_groups] == [5, 1]


def test_muon_momentum_is_restored_from_state_dict():
    _, after, optimizer = stepped(Muon)
    other = Muon([{"params": [nn.Parameter(p.detach().clone()) for p in after]}])
    other.load_state_dict(optimizer.state_dict())
    kept = [state["mean"] for state in other.state.values() if "mean" in state]
    assert len(kept) == 1 and torch.equal(kept[0], optimizer.state[after[2]]["mean"])


def test_muon_step_with_closure_zeroes_kernel_gradients():
    weights = []
    for by_closure in (True, False):
        torch.manual_seed(0)
        layer, x = nn.Conv2d(4, 4, 3), torch.randn(2, 4, 5, 5)
        optimizer = Muon([{"params": list(layer.parameters())}])

        def closure(layer=layer, x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = layer(x).square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            if by_closure:
                assert optimizer.step(closure).requires_grad
            else:
                closure()
                optimizer.step()
        weights.append(layer.weight.detach().clone())
    assert torch.equal(*weights)
