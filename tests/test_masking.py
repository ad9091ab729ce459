"""Masks in the model: in the forward pass, in the state dict, and never undone by training."""

import copy
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from gshw.errors import GshwError
from pruning.masking import dense_weight, set_mask, squash_masks, weight_mask
from pruning.prune import cubic_sparsity


def random_mask(shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights from a fixed seed, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return module


MODULES = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (2, 3, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (2, 3)), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("kind", MODULES)
def test_forward_uses_the_masked_weight(kind):
    make, shape = MODULES[kind]
    module, plain = seeded(make()), seeded(make())
    mask = random_mask(module.weight.shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain.weight[~mask] = 0
    set_mask(module, mask)
    assert torch.equal(module.weight != 0, mask)
    assert torch.equal(module(x), plain(x))


def test_dense_weight_is_kept_below_the_mask():
    module = seeded(nn.Linear(6, 4))
    before = module.weight.detach().clone()
    assert dense_weight(module) is module.weight
    set_mask(module, random_mask((4, 6)))
    assert torch.equal(dense_weight(module), before)
    set_mask(module, torch.ones(4, 6, dtype=torch.bool))
    assert torch.equal(module.weight, before)


def test_set_mask_again_changes_it_in_place():
    module = seeded(nn.Linear(6, 4))
    set_mask(module, random_mask((4, 6), 0))
    present = weight_mask(module)
    second = random_mask((4, 6), 1)
    set_mask(module, second)
    assert weight_mask(module) is present
    assert len(module.parametrizations["weight"]) == 1
    assert torch.equal(present.mask, second)
    assert torch.equal(module.weight != 0, second)


def test_the_callers_mask_stays_its_own():
    module = seeded(nn.Linear(6, 4))
    mask = random_mask((4, 6))
    before = mask.clone()
    set_mask(module, mask)
    set_mask(module, ~mask)
    assert torch.equal(mask, before)


def test_numeric_masks_count_as_bool():
    module = seeded(nn.Linear(3, 2))
    set_mask(module, torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, -1.0]]))
    assert weight_mask(module).mask.dtype == torch.bool
    assert weight_mask(module).mask.tolist() == [[True, False, True], [False, False, True]]


def test_weight_mask_of_modules_without_one():
    assert weight_mask(nn.Linear(2, 2)) is None
    assert weight_mask(nn.ReLU()) is None
    module = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert weight_mask(module) is None


@pytest.mark.parametrize("shape", [(6, 4), (4,), (4, 5), (4, 6, 1)])
def test_wrong_shape(shape):
    module = nn.Linear(6, 4)
    message = f"mask must have the weight's shape (4, 6), not {shape}"
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        set_mask(module, torch.ones(shape, dtype=torch.bool))
    assert weight_mask(module) is None


def small_model() -> nn.Module:
    return seeded(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)))


def masked_model(seed: int = 0) -> nn.Module:
    model = small_model()
    for index in (0, 3):
        set_mask(model[index], random_mask(model[index].weight.shape, seed))
    return model


def test_state_dict_round_trip():
    """The mask is a buffer: another masked model takes it over."""
    model, other = masked_model(0), seeded(masked_model(1), 2)
    state = model.state_dict()
    assert "0.parametrizations.weight.0.mask" in state
    other.load_state_dict(state)
    for index in (0, 3):
        assert torch.equal(other[index].weight, model[index].weight)
        assert torch.equal(weight_mask(other[index]).mask, weight_mask(model[index]).mask)
    assert not torch.equal(masked_model(1)[3].weight, model[3].weight)


def test_deepcopy_is_independent():
    model = masked_model()
    twin = copy.deepcopy(model)
    before = model[3].weight.detach().clone()
    assert torch.equal(twin[3].weight, before)
    set_mask(twin[3], torch.zeros(2, 12, dtype=torch.bool))
    with torch.no_grad():
        dense_weight(twin[3]).fill_(7)
    assert not twin[3].weight.any()
    assert torch.equal(model[3].weight, before)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_training_does_not_revive_pruned_weights(optimiser):
    """Momentum and weight decay may move what lies below the mask, never the weight itself."""
    model = masked_model()
    masks = {index: weight_mask(model[index]).mask.clone() for index in (0, 3)}
    start = {index: model[index].weight.detach().clone() for index in (0, 3)}
    options = {"momentum": 0.9} if optimiser is torch.optim.SGD else {}
    steps = optimiser(model.parameters(), lr=0.05, weight_decay=0.1, **options)
    x = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(3))
    for _ in range(5):
        steps.zero_grad()
        model(x).square().sum().backward()
        for index, mask in masks.items():
            assert not dense_weight(model[index]).grad[~mask].any()
        steps.step()
    for index, mask in masks.items():
        assert not model[index].weight[~mask].any()
        assert not torch.equal(model[index].weight, start[index])
        assert torch.equal(weight_mask(model[index]).mask, mask)


def test_squash_leaves_a_plain_model():
    model = masked_model()
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(4))
    wanted, weight = model(x), model[3].weight.detach().clone()
    squash_masks(model)
    assert weight_mask(model[0]) is None and weight_mask(model[3]) is None
    assert set(model.state_dict()) == set(small_model().state_dict())
    assert torch.equal(model[3].weight, weight)
    assert torch.equal(model(x), wanted)
    assert all(isinstance(model[index].weight, nn.Parameter) for index in (0, 3))


# --- schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [0.0, 0.5, 0.9, 0.99])
def test_cubic_schedule(final):
    """From 0 to the final sparsity, rising, and slower each step."""
    n_steps = 20
    path = [cubic_sparsity(final, step, n_steps) for step in range(n_steps + 1)]
    assert path[0] == 0.0 and path[-1] == final
    rises = [b - a for a, b in pairwise(path)]
    assert all(rise >= 0 for rise in rises)
    assert all(a >= b - 1e-12 for a, b in pairwise(rises))
    assert cubic_sparsity(final, 10, 20) == pytest.approx(final * 0.875)


def test_cubic_schedule_beyond_its_ends():
    assert cubic_sparsity(0.9, -3, 10) == 0.0
    assert cubic_sparsity(0.9, 11, 10) == 0.9
