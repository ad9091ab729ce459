"""Methods against loops written out by hand, and every method inside every kind of pattern."""

import copy
from itertools import pairwise
from math import cos, pi, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import Config, TargetConfig, load_config
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind
from pruning.methods.method import Gradual, OneShot
from pruning.methods.mutation import Mest, RigL
from pruning.methods.penalties import Admm, GroupLasso, block_numbers
from pruning.models.masking import dense_weight, weight_mask
from pruning.patterns.checkers import violations
from pruning.pruner import GSPruner
from pruning.recipe import Recipe
from pruning.targets import Scope
from tests.strategies import ENGINES

torch.set_num_threads(1)

N_STEPS = 24
RATE = 0.05


def config_of(engine: str) -> Config:
    return Config(name=engine, engine=ENGINES[engine], target=TargetConfig())


def recipe_of(method: dict, sparsity: float = 0.75, engine: str = "vertical4", **rest) -> Recipe:
    document = {"pattern": {"kind": "unstructured"}, "target": {"sparsity": sparsity}}
    return Recipe.from_dict(document | {"method": method} | rest, config_of(engine))


def toy(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear layer and a batch that a sparse one explains."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 12, generator=generator)
    true = torch.randn(8, 12, generator=generator)
    true *= torch.rand(8, 12, generator=generator) < 0.25
    layer = nn.Linear(12, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.5 * torch.randn(8, 12, generator=generator))
    return nn.Sequential(layer), x, x @ true.T


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (model(x) - y).square().mean()


def train(model, pruner, x, y, n_steps=N_STEPS, after=None):
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(1, n_steps + 1):
        loss = loss_of(model, x, y) + pruner.penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pruner.step()
        if after is not None:
            after(step)


def gradient(weight: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean squared error with respect to the masked weight."""
    error = x @ (weight * mask).T - y
    return 2.0 / error.size * error.T @ x


def largest(scores: np.ndarray, n: int) -> np.ndarray:
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:n]] = True
    return mask.reshape(scores.shape)


def start_of(model: nn.Module) -> np.ndarray:
    return dense_weight(model[0]).detach().double().numpy().copy()


def state_of(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    dense = dense_weight(model[0]).detach().double().numpy()
    return dense, weight_mask(model[0]).mask.numpy()


# --- each against its definition -----------------------------------------------------------------


def test_one_shot_prunes_once():
    model, x, y = toy()
    pruner = GSPruner(model, recipe_of({"kind": "one-shot", "start": 0.5}))
    pruner.prepare(N_STEPS)
    weight, mask = start_of(model), np.ones((8, 12), dtype=bool)
    x64, y64 = x.double().numpy(), y.double().numpy()

    def check(step: int) -> None:
        nonlocal weight, mask
        weight = weight - RATE * gradient(weight, mask, x64, y64) * mask
        if step == 12:
            mask = largest(np.abs(weight), 24)
        found, live = state_of(model)
        assert np.array_equal(live, mask)
        assert np.allclose(found, weight, atol=1e-5)

    train(model, pruner, x, y, after=check)
    assert pruner.log == [(12, pytest.approx(0.75))]


def test_one_shot_at_once():
    model, *_ = toy()
    before = start_of(model)
    pruner = GSPruner(model, recipe_of({"kind": "one-shot"}))
    pruner.prepare(0)
    assert np.array_equal(state_of(model)[1], largest(np.abs(before), 24))


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_gradual_follows_the_cubic(initial):
    """Zhu & Gupta, with weights that may come back from below the mask."""
    model, x, y = toy()
    method = {"kind": "gradual", "start": 0.25, "stop": 0.75, "updates": 4, "initial": initial}
    pruner = GSPruner(model, recipe_of(method))
    pruner.prepare(N_STEPS)
    weight, mask = start_of(model), np.ones((8, 12), dtype=bool)
    x64, y64 = x.double().numpy(), y.double().numpy()
    due = {6 + 3 * i: 0.75 + (initial - 0.75) * (1 - i / 4) ** 3 for i in range(5)}

    def check(step: int) -> None:
        nonlocal weight, mask
        weight = weight - RATE * gradient(weight, mask, x64, y64) * mask
        if step in due:
            mask = largest(np.abs(weight), round(96 * (1 - due[step])))
        found, live = state_of(model)
        assert np.array_equal(live, mask), step
        assert np.allclose(found, weight, atol=1e-5)

    train(model, pruner, x, y, after=check)
    assert [step for step, _ in pruner.log] == sorted(due)
    assert pruner.log[-1][1] == pytest.approx(0.75)


def test_gradual_keeps_below_the_targets_of_layers():
    method = Gradual(initial=0.6, updates=2)
    assert method.sparsity(0.5, 0) == 0.5 and method.sparsity(0.5, 1) == 0.5
    assert method.sparsity(0.9, 0) == 0.6 and method.sparsity(0.9, 2) == 0.9


def test_admm_alternates():
    model, x, y = toy()
    method = {"kind": "admm", "stop": 0.75, "updates": 3, "rho": 0.4}
    pruner = GSPruner(model, recipe_of(method))
    pruner.prepare(N_STEPS)
    weight = start_of(model)
    x64, y64 = x.double().numpy(), y.double().numpy()
    mask = np.ones((8, 12), dtype=bool)
    dual, rho = np.zeros_like(weight), 0.4
    auxiliary = weight * largest(np.abs(weight), 24)

    def check(step: int) -> None:
        nonlocal weight, mask, dual, auxiliary, rho
        total = gradient(weight, mask, x64, y64) * mask + rho * (weight - auxiliary + dual)
        weight = weight - RATE * total
        if step in (6, 12):
            auxiliary = (weight + dual) * largest((weight + dual) ** 2, 24)
            dual = dual + weight - auxiliary
        if step == 18:
            mask, rho = largest(np.abs(weight), 24), 0.0
        found, live = state_of(model)
        assert np.array_equal(live, mask), step
        assert np.allclose(found, weight, atol=1e-5), step
        wanted = 0.5 * rho * ((weight - auxiliary + dual) ** 2).sum()
        assert pruner.penalty().item() == pytest.approx(wanted, rel=1e-4, abs=1e-7)

    train(model, pruner, x, y, after=check)
    assert rho == 0.0


def test_admm_projects_by_squares():
    """Of two blocks the one nearer to the weights: 3, 0 and not 2, 2, whose sum is larger."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0.0, 2.0, 2.0]] * 2))
    blocks = {"kind": "block", "height": 2, "width": 2}
    recipe = recipe_of({"kind": "admm", "updates": 1, "rho": 2.0}, 0.5, pattern=blocks)
    pruner = GSPruner(model, recipe)
    pruner.prepare(4)
    # The distance that is left is that of the other block.
    assert pruner.penalty().item() == pytest.approx(2 * (2.0**2 + 2.0**2))


def test_admm_draws_weights_to_the_pattern():
    """What is pruned at the end has become small on the way."""
    shares = {}
    for rho in (1e-6, 1.0):
        model, x, y = toy()
        pruner = GSPruner(model, recipe_of({"kind": "admm", "stop": 1.0, "updates": 6, "rho": rho}))
        pruner.prepare(120)
        train(model, pruner, x, y, 120)
        dense, mask = state_of(model)
        shares[rho] = np.abs(dense[~mask]).sum() / np.abs(dense).sum()
    assert shares[1.0] < 0.5 * shares[1e-6]


def test_group_lasso_weighs_groups_anew():
    """Groups of 2 x 3 weights, numbers by loops."""
    model, x, y = toy()
    method = {"kind": "group-lasso", "stop": 0.75, "updates": 3, "strength": 1e-3, "epsilon": 0.01}
    pruner = GSPruner(model, recipe_of(method | {"group_rows": 2, "group_columns": 3}))
    pruner.prepare(N_STEPS)
    weight = start_of(model)
    x64, y64 = x.double().numpy(), y.double().numpy()
    mask, strength = np.ones((8, 12), dtype=bool), 1e-3

    def norms(values: np.ndarray) -> np.ndarray:
        found = np.zeros((4, 4))
        for i in range(8):
            for j in range(12):
                found[i // 2, j // 3] += values[i, j] ** 2
        return np.sqrt(found)

    alpha = 1.0 / (norms(weight) ** 2 + 0.01)

    def check(step: int) -> None:
        nonlocal weight, mask, alpha, strength
        slope = np.kron(alpha / norms(weight), np.ones((2, 3))) * weight
        weight = weight - RATE * (gradient(weight, mask, x64, y64) * mask + strength * slope)
        if step in (6, 12):
            alpha = 1.0 / (norms(weight) ** 2 + 0.01)
        if step == 18:
            mask, strength = largest(np.abs(weight), 24), 0.0
        found, live = state_of(model)
        assert np.array_equal(live, mask), step
        assert np.allclose(found, weight, atol=1e-4), step
        wanted = strength * (alpha * norms(weight)).sum()
        assert pruner.penalty().item() == pytest.approx(wanted, rel=1e-3, abs=1e-7)

    train(model, pruner, x, y, after=check)
    assert strength == 0.0


def test_group_lasso_bears_groups_of_zeros():
    model, x, y = toy()
    with torch.no_grad():
        model[0].weight.zero_()
    pruner = GSPruner(model, recipe_of({"kind": "group-lasso", "strength": 1e-3}))
    pruner.prepare(N_STEPS)
    train(model, pruner, x, y, 2)
    assert torch.isfinite(dense_weight(model[0])).all()


@pytest.mark.parametrize("engine", ["vertical8", "hybrid4"])
def test_groups_are_the_engines_blocks(engine):
    """A block: consecutive channels of one tap, within one word of one bank."""
    config = ENGINES[engine]
    geometry = Geometry(kind=LayerKind.CONV2D, in_channels=7, kernel=(2, 2))
    numbers = block_numbers(config, geometry, 3)
    assert numbers.shape == (3, 28)
    for row in range(3):
        for column in range(28):
            for other_row in range(3):
                for other in range(28):
                    tap, channel = divmod(column, 7)
                    other_tap, other_channel = divmod(other, 7)
                    same = (row, tap, channel // config.block) == (
                        other_row,
                        other_tap,
                        other_channel // config.block,
                    )
                    assert (numbers[row, column] == numbers[other_row, other]) == same


def test_rigl_drops_the_smallest_and_grows_by_gradient():
    model, x, y = toy()
    method = {"kind": "rigl", "start": 0.25, "stop": 0.75, "updates": 3, "fraction": 0.5}
    pruner = GSPruner(model, recipe_of(method))
    pruner.prepare(N_STEPS)
    weight, mask = start_of(model), np.ones((8, 12), dtype=bool)
    x64, y64 = x.double().numpy(), y.double().numpy()
    changed = 0

    def check(step: int) -> None:
        nonlocal weight, mask, changed
        slope = gradient(weight, mask, x64, y64)
        weight = weight - RATE * slope * mask
        if step == 6:
            mask = largest(np.abs(weight), 24)
        if step in (10, 14):
            share = 0.5 / 2 * (1 + cos(pi * {10: 1, 14: 2}[step] / 3))
            n_stay = round(24 * (1 - share))
            stays = largest(np.where(mask, np.abs(weight), -1.0), n_stay)
            comes = largest(np.where(stays, -1.0, np.abs(slope)), 24 - n_stay)
            before, mask = mask, stays | comes
            changed += int((mask & ~before).sum())
            weight = np.where(mask & ~before, 0.0, weight)
        found, live = state_of(model)
        assert np.array_equal(live, mask), step
        assert np.allclose(found, weight, atol=1e-5), step

    train(model, pruner, x, y, after=check)
    assert [step for step, _ in pruner.log] == [6, 10, 14]
    assert changed > 4


@pytest.mark.parametrize("gradient_weight", [0.0, 10.0])
def test_mest_prunes_beyond_the_target_and_grows_back(gradient_weight):
    model, x, y = toy()
    method = {"kind": "mest", "stop": 0.5, "updates": 2, "fraction": 0.5}
    pruner = GSPruner(model, recipe_of(method | {"gradient_weight": gradient_weight}))
    pruner.prepare(N_STEPS)
    weight = start_of(model)
    x64, y64 = x.double().numpy(), y.double().numpy()
    mask = largest(np.abs(weight), 24)

    def check(step: int) -> None:
        nonlocal weight, mask
        slope = gradient(weight, mask, x64, y64)
        weight = weight - RATE * slope * mask
        found, live = state_of(model)
        if step == 6:
            importance = np.abs(weight) + gradient_weight * np.abs(slope)
            stays = largest(np.where(mask, importance, -1.0), 18)
            assert (live & stays).sum() == 18 and live.sum() == 24
            grown = live & ~mask
            assert not found[grown].any() and grown.sum() >= 2
            weight, mask = np.where(grown, 0.0, weight), live.copy()
        assert np.array_equal(live, mask), step
        assert np.allclose(found, weight, atol=1e-5), step

    train(model, pruner, x, y, after=check)


def test_mest_with_a_soft_bound_is_denser_until_the_end():
    """Grown first, judged later; weights stay dense below the target's sparsity."""
    model, x, y = toy()
    method = {"kind": "mest", "stop": 0.75, "updates": 3, "fraction": 0.5, "soft": True}
    pruner = GSPruner(model, recipe_of(method))
    before = np.abs(start_of(model))
    pruner.prepare(N_STEPS)
    _, first = state_of(model)
    assert (first & largest(before, 24)).sum() == 24
    seen = [first.sum()]
    kept = first.copy()

    def check(step: int) -> None:
        nonlocal kept
        found, live = state_of(model)
        if step in (6, 12, 18):
            seen.append(live.sum())
            stays = largest(np.where(kept, np.abs(found), -1.0), 24)
            assert (live & stays).sum() == 24
        kept = live.copy()

    train(model, pruner, x, y, after=check)
    assert seen == [36, 32, 28, 24]
    assert [round(96 * (1 - sparsity)) for _, sparsity in pruner.log] == seen


def test_growth_is_random_by_the_seed_alone():
    def masks(seed: int) -> np.ndarray:
        model, x, y = toy()
        recipe = recipe_of({"kind": "mest", "updates": 2, "fraction": 0.5}, seed=seed)
        pruner = GSPruner(model, recipe)
        pruner.prepare(4)
        torch.manual_seed(next(seeds))
        train(model, pruner, x, y, 2)
        return state_of(model)[1].copy()

    seeds = iter(range(4))
    assert np.array_equal(masks(1), masks(1))
    assert not np.array_equal(masks(1), masks(2))


def test_fractions_fall_to_nothing():
    rigl, mest = RigL(updates=4, fraction=0.4), Mest(updates=4, fraction=0.4)
    assert [rigl.dropped(i) for i in range(5)] == pytest.approx(
        [0.4, 0.2 + 0.2 / sqrt(2), 0.2, 0.2 - 0.2 / sqrt(2), 0.0]
    )
    assert [mest.mutated(i) for i in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


# --- inside any pattern --------------------------------------------------------------------------

METHODS = {
    "one-shot": {"start": 0.25},
    "gradual": {"updates": 4, "initial": 0.3},
    "admm": {"updates": 3},
    "group-lasso": {"updates": 3},
    "rigl": {"updates": 4, "fraction": 0.5},
    "mest": {"updates": 4, "fraction": 0.5},
    "mest soft": {"updates": 4, "fraction": 0.5, "soft": True},
}
PATTERNS = {
    "gs": {},
    "gs consecutive": {"grouping": "consecutive"},
    "gs fixed": {"budget": "fixed"},
    "gs-greedy": {},
    "unstructured": {},
    "block": {"height": 2, "width": 4},
    "simd-vector": {"width": 4},
    "node": {},
    "bank-balanced": {"n_banks": 4},
    "n-of-m": {"group_size": 8},
    "pe-balanced": {"n_pes": 4},
    "block-column-row": {"height": 4, "width": 8},
    "row-column": {"height": 4, "width": 8},
    "density-adaptive": {},
    "kernel-group": {},
    "block-punched": {},
}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 12)
    )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_every_mask_on_the_way_is_of_the_pattern(method, pattern):
    engine = "hybrid4" if pattern == "gs consecutive" else "vertical4"
    recipe = recipe_of(
        {"kind": method.split()[0], **METHODS[method]},
        0.5,
        engine,
        pattern={"kind": pattern.split()[0], **PATTERNS[pattern]},
    )
    model = network(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 8, 2, 2, generator=generator)
    y = torch.randn(8, 12, generator=generator)
    pruner = GSPruner(model, recipe)
    pruner.prepare(12, example=x)
    seen = set()

    def check(step: int) -> None:
        for weight in pruner.weights:
            found = pruner.projections.get(weight.name)
            mask = weight.to_matrix(weight_mask(weight.module, weight.tensor_name).mask)
            if found is None:
                assert mask.all()
                continue
            assert np.array_equal(found.mask, mask)
            assert not violations(recipe.pattern, mask, weight.geometry, found.row_order)
            seen.add((step, weight.name))

    check(0)
    train(model, pruner, x, y, 12, check)
    assert {name for _, name in seen} == {weight.name for weight in pruner.weights}
    # The greedy baseline rounds every bundle's number of groups for itself.
    least = 0.4 if pattern == "gs-greedy" else 0.5
    assert all(least <= 1 - found.density < 0.75 for found in pruner.projections.values())


@pytest.mark.parametrize("pattern", ["gs", "unstructured", "block"])
@pytest.mark.parametrize("method", ["rigl", "mest"])
def test_survivors_survive(method, pattern):
    """Inside any pattern, what the pattern keeps at the lower density is in the next mask."""
    spec = {"kind": pattern, **({"width": 4} if pattern == "block" else {})}
    method = {"kind": method, "stop": 1.0, "updates": 2, "fraction": 0.5}
    recipe = recipe_of(method, 0.5, pattern=spec)
    model = network(0)
    pruner = GSPruner(model, recipe)
    x = torch.randn(8, 8, 2, 2, generator=torch.Generator().manual_seed(1))
    pruner.prepare(4, example=x)
    before = dict(pruner.projections)
    train(model, pruner, x, torch.zeros(8, 12), 1)
    weights = {weight.name: weight.to_matrix(weight.dense) for weight in pruner.weights}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    loss_of(model, x, torch.zeros(8, 12)).backward()
    optimiser.step()
    pruner.step()
    share = recipe.method.dropped(1) if method["kind"] == "rigl" else recipe.method.mutated(1)
    for name, now in pruner.projections.items():
        was = before[name].mask
        kept = 0.5 * was.size * (1 - share)
        assert (now.mask & was).sum() >= kept - 32
        assert not np.array_equal(now.mask, was)
        assert np.array_equal(now.row_order, before[name].row_order)
        # The largest weight of a mask is never among those that go.
        place = np.unravel_index(np.argmax(np.where(was, np.abs(weights[name]), -1)), was.shape)
        assert now.mask[place]


@pytest.mark.parametrize("scope", Scope)
def test_candidates_of_one_budget_are_compared(scope):
    """Under one budget a layer of small gradients does not grow like one of large ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    recipe = recipe_of(
        {"kind": "rigl", "updates": 2, "stop": 1.0, "fraction": 0.9},
        target={"sparsity": 0.75, "scope": scope.value},
    )
    pruner = GSPruner(model, recipe)
    pruner.prepare(2)
    before = [found.mask for found in pruner.projections.values()]
    for weight, size in zip(pruner.weights, (1.0, 1e-3), strict=True):
        (weight.masked * (size * (1 + torch.rand(16, 16)))).sum().backward()
    pruner.step()
    after = [found.mask for found in pruner.projections.values()]
    assert sum(mask.sum() for mask in after) == sum(mask.sum() for mask in before) == 128
    grown = [int((now & ~was).sum()) for now, was in zip(after, before, strict=True)]
    assert grown[0] > 10 and (grown[1] == 0) == (scope is Scope.NETWORK)


def test_the_network_scope_moves_budget_between_layers():
    """One budget: the layer of larger weights keeps more; a layer's own sparsity stays its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight *= 3
    recipe = recipe_of(
        {"kind": "rigl", "updates": 2},
        pattern={"kind": "gs"},
        target={"sparsity": 0.75, "scope": "network"},
        layer=[{"match": "3", "sparsity": 0.5}],
    )
    pruner = GSPruner(model, recipe)
    pruner.prepare(8)
    train(model, pruner, torch.randn(4, 16), torch.zeros(4, 16), 8)
    kept = {name: found.density for name, found in pruner.projections.items()}
    assert kept["0"] > 0.3 > kept["2"] and kept["3"] == pytest.approx(0.5)
    assert (kept["0"] + kept["2"]) / 2 == pytest.approx(0.25)


# --- convergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_training_recovers_a_sparse_teacher(method):
    """A layer that a quarter of its weights explains is found again to a small error."""
    model, x, y = toy()
    recipe = recipe_of({"kind": method.split()[0], **METHODS[method]}, 0.7)
    pruner = GSPruner(model, recipe)
    pruner.prepare(300)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    start = loss_of(model, x, y).item()
    for _ in range(300):
        optimiser.zero_grad()
        (loss_of(model, x, y) + pruner.penalty()).backward()
        optimiser.step()
        pruner.step()
    limit = {"one-shot": 0.5, "mest": 0.5, "mest soft": 0.3}.get(method, 0.1)
    assert loss_of(model, x, y).item() < limit * start


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "n_steps", "steps"),
    [
        (OneShot(), 0, [0]),
        (OneShot(start=0.5), 10, [5]),
        (Gradual(start=0.1, stop=0.5, updates=4), 100, [10, 20, 30, 40, 50]),
        (Admm(stop=1.0, updates=2), 10, [0, 5, 10]),
        (GroupLasso(updates=1, stop=0.5), 10, [0, 5]),
        (RigL(stop=0.75, updates=3), 100, [0, 25, 50]),
        (Mest(stop=0.75, updates=3), 100, [0, 25, 50, 75]),
    ],
)
def test_steps_of_updates(method, n_steps, steps):
    assert method.steps(n_steps) == steps


@pytest.mark.parametrize("final", [0.0, 0.5, 0.9, 0.99])
def test_the_cubic_schedule_slows_down(final):
    """From 0 to the final sparsity, rising, and slower each update."""
    method = Gradual(updates=20)
    path = [method.sparsity(final, number) for number in range(21)]
    assert path[0] == 0.0 and path[-1] == final
    rises = [b - a for a, b in pairwise(path)]
    assert all(rise >= 0 for rise in rises)
    assert all(a >= b - 1e-12 for a, b in pairwise(rises))
    assert method.sparsity(final, 10) == pytest.approx(final * 0.875)


def test_more_updates_than_steps():
    with pytest.raises(GshwError) as caught:
        Gradual(updates=10).steps(10)
    assert str(caught.value) == (
        "method 'gradual' makes 11 updates between steps 0 and 5, more than there are steps; "
        "train longer or lower updates"
    )


def test_growth_without_a_backward_pass():
    model, *_ = toy()
    pruner = GSPruner(model, recipe_of({"kind": "rigl", "updates": 2, "stop": 1.0}))
    pruner.prepare(4)
    pruner.step()
    with pytest.raises(GshwError) as caught:
        pruner.step()
    assert str(caught.value) == (
        "layer '0': weights grow by their gradient, but no backward pass reached it since the "
        "last step"
    )


def test_gradients_are_kept_only_when_they_are_read():
    """A dense gradient costs memory: it is captured in the one step before an update."""
    model, x, y = toy()
    pruner = GSPruner(model, recipe_of({"kind": "rigl", "stop": 0.5, "updates": 3}))
    pruner.prepare(N_STEPS)
    captured = [weight_mask(model[0]).capture_gradient]
    train(
        model, pruner, x, y, after=lambda _: captured.append(weight_mask(model[0]).capture_gradient)
    )
    assert [step for step, on in enumerate(captured) if on] == [3, 7]


def test_the_presets_take_every_method():
    """Also copies of a model are pruned alike."""
    model, x, y = toy()
    for kind in ("gradual", "rigl"):
        recipe = Recipe.from_dict(
            {
                "pattern": {"kind": "gs"},
                "target": {"sparsity": 0.5},
                "method": {"kind": kind, "updates": 2},
            },
            load_config("tiny"),
        )
        masks = []
        for twin in (copy.deepcopy(model), copy.deepcopy(model)):
            pruner = GSPruner(twin, recipe)
            pruner.prepare(N_STEPS)
            train(twin, pruner, x, y)
            masks.append(pruner.projections["0"].mask)
        assert np.array_equal(*masks)
