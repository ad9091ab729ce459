"""The pruner as a training loop uses it: prepare to squash, saved and resumed, on two ranks."""

import copy
import io
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from gshw.config import Config, EngineConfig, TargetConfig, load_config
from gshw.errors import GshwError
from gshw.pattern import check_mask
from pruning.models.masking import dense_weight, masked_tensors, weight_mask
from pruning.pruner import GSPruner, prune
from pruning.recipe import Recipe
from pruning.recovery.calibration import collect_moments
from pruning.recovery.least_squares import output_error
from pruning.scores import Score, score_matrix
from tests.strategies import ENGINES

torch.set_num_threads(1)

N_STEPS = 12


def config_of(engine: EngineConfig) -> Config:
    return Config(name="test", engine=engine, target=TargetConfig())


CONFIG = config_of(ENGINES["vertical4"])
METHODS = {
    "one-shot": {"start": 0.5},
    "gradual": {"updates": 4},
    "admm": {"updates": 3, "stop": 0.75},
    "group-lasso": {"updates": 3, "stop": 0.75},
    "rigl": {"updates": 4},
    "mest": {"updates": 4, "soft": True, "gradient_weight": 0.5},
}


def recipe_of(sparsity: float = 0.5, config: Config = CONFIG, **sections) -> Recipe:
    document = {"pattern": {"kind": "gs"}, "target": {"sparsity": sparsity}}
    return Recipe.from_dict(document | sections, config)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 9, 8),
    )


def batches(n: int = N_STEPS, seed: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(16, 8, 3, 3, generator=generator),
            torch.randint(8, (16,), generator=generator),
        )
        for _ in range(n)
    ]


def loss_of(model, x, y) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def train(model, pruner, optimiser, data) -> None:
    for x, y in data:
        loss = loss_of(model, x, y) + pruner.penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pruner.step()


def prepared(model=None, n_steps=N_STEPS, **sections) -> GSPruner:
    pruner = GSPruner(network() if model is None else model, recipe_of(**sections))
    pruner.prepare(n_steps, example=batches(1)[0][0])
    return pruner


# --- from prepare to squash ----------------------------------------------------------------------


def test_a_whole_run():
    """Masks of the engine's pattern; the optimiser keeps its parameters; zeros in the end."""
    model = network()
    before = dict(model.named_parameters())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = prepared(model, method={"kind": "gradual", "updates": 3})
    assert pruner.skipped == {} and [w.name for w in pruner.weights] == ["0", "4"]
    assert pruner.projections == {}
    train(model, pruner, optimiser, batches())
    assert [step for step, _ in pruner.log] == [0, 2, 4, 6]
    assert [s for _, s in pruner.log] == pytest.approx([0.0, 0.352, 0.481, 0.5], abs=0.03)
    x = batches(1)[0][0]
    model.eval()
    wanted = model(x)
    found = pruner.projections
    pruner.squash_mask()
    assert not masked_tensors(model) and torch.equal(model(x), wanted)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in after)
    for weight in pruner.weights:
        projection = pruner.projections[weight.name]
        assert np.array_equal(projection.mask, found[weight.name].mask)
        assert np.array_equal(weight.to_matrix(weight.dense) != 0, projection.mask)
        assert projection.gap < 1e-6 and 0.48 < projection.density <= 0.5
        assert not check_mask(CONFIG.engine, projection.mask, weight.geometry, projection.row_order)


def test_penalty_is_a_scalar_to_add():
    pruner = prepared()
    assert pruner.penalty().shape == () and pruner.penalty().item() == 0
    assert prepared(method={"kind": "admm"}).penalty().item() > 0


def test_what_is_left_dense_says_why():
    """Skipped by the recipe, refused by the pattern, not prunable at all."""
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.Flatten(),
        nn.Linear(3, 8),
        nn.Linear(8, 8),
    )
    rules = [
        {"match": "*", "skip": True},
        {"match": "[14]", "skip": False},
        {"match": "1", "sparsity": 0.25},
        {"match": "3", "skip": False},
    ]
    pruner = GSPruner(model, recipe_of(layer=rules))
    pruner.prepare(1)
    assert pruner.skipped == {
        "0": "a convolution of 8 groups; the engine runs groups = 1",
        "3": "3 columns leave a bank of 4 empty, so no mask but the empty one is balanced",
    }
    kept = {name: found.density for name, found in pruner.projections.items()}
    assert kept == {"1": 0.75, "4": 0.5}
    skipping = GSPruner(network(), recipe_of(layer=[{"match": "4", "skip": True}]))
    skipping.prepare(1)
    assert skipping.skipped == {"4": "the recipe skips it"} and list(skipping.projections) == ["0"]


def test_rows_that_lose_all_are_warned_of():
    """As soon as the run is prepared, and after the last update."""
    torch.manual_seed(0)
    model = nn.Linear(16, 40)
    pruner = GSPruner(
        model, recipe_of(0.95, method={"kind": "one-shot", "start": 0.5}, config=load("h16"))
    )
    pruner.prepare(2)
    line = (
        "layer 'weight': 38 of 40 rows keep no weight; all keep some up to sparsity 0, or with "
        "fewer lanes per row"
    )
    assert pruner.warnings == [line]
    pruner.step()
    assert pruner.warnings == [line]
    unstructured = GSPruner(nn.Linear(16, 40), recipe_of(0.98, pattern={"kind": "unstructured"}))
    unstructured.prepare(1)
    assert unstructured.warnings[0].endswith("of 40 rows keep no weight")
    assert not prepared().warnings


def load(name: str) -> Config:
    return load_config(name)


def test_recurrent_and_attention_weights_are_pruned():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x, _ = self.lstm(x)
            return self.attention(x, x, x)[0]

    torch.manual_seed(0)
    model = Model()
    pruner = GSPruner(model, recipe_of(method={"kind": "rigl", "updates": 2, "stop": 1.0}))
    pruner.prepare(4)
    names = ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    names += ["attention.in_proj_weight", "attention.out_proj"]
    assert [weight.name for weight in pruner.weights] == names
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimiser.zero_grad()
        model(torch.randn(2, 5, 8)).square().sum().backward()
        optimiser.step()
        pruner.step()
    pruner.squash_mask()
    assert all(found.density == 0.5 for found in pruner.projections.values())
    assert (model.lstm.weight_hh_l0 == 0).float().mean() == 0.5
    assert model(torch.randn(2, 5, 8)).shape == (2, 5, 8)


# --- scores --------------------------------------------------------------------------------------


def halves(weights: np.ndarray, name: str) -> np.ndarray:
    """A user's score: the first columns."""
    return np.broadcast_to(-np.arange(weights.shape[1]) + 1000.0, weights.shape)


@pytest.mark.parametrize("kind", ["wanda", "hessian", "gradient", "function"])
def test_scores_decide_the_mask(kind):
    """The mask keeps what the score of that name ranks first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6))
    x = torch.randn(64, 12) * torch.logspace(-1, 1, 12)
    data = [(x, torch.randint(6, (64,)))]
    score = {"kind": kind}
    if kind == "function":
        score["function"] = f"{halves.__module__}:halves"
    recipe = recipe_of(pattern={"kind": "unstructured"}, score=score)
    twin = copy.deepcopy(model)
    pruner = prune(model, recipe, calibration=data, loss=nn.functional.cross_entropy)
    weight = pruner.weights[0]
    matrix = twin[0].weight.detach().numpy()
    if kind == "gradient":
        loss_of(twin, *data[0]).backward()
        scores = np.abs(matrix * twin[0].weight.grad.numpy())
    elif kind == "function":
        scores = halves(matrix, "0")
    elif kind == "wanda":
        scores = np.abs(matrix) * x.square().mean(0).sqrt().numpy()
    else:
        moments = collect_moments(model, [weight], data)["0"]
        scores = score_matrix(Score.HESSIAN, weight, moments=moments)
    kept = pruner.projections["0"].mask
    assert kept.sum() == 36 and scores[kept].min() >= scores[~kept].max()


@pytest.mark.parametrize("kind", ["wanda", "hessian", "gradient"])
def test_scores_that_need_calibration(kind):
    with pytest.raises(GshwError) as caught:
        prepared(score={"kind": kind})
    assert str(caught.value) == f"score {kind!r} needs calibration batches"


def test_gradient_scores_need_a_loss():
    with pytest.raises(GshwError) as caught:
        prune(network(), recipe_of(score={"kind": "gradient"}), calibration=batches(1))
    assert str(caught.value) == "score 'gradient' needs a loss of (output, target)"


# --- masks that stay -----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize("method", METHODS)
def test_masks_that_stay(method, scope):
    """One layer's at half the target's sparsity and on bundles of its own; the other is pruned."""
    first = prune(network(), recipe_of(0.25))
    model = first.model
    kept = first.projections["0"]
    weight_mask(model[4]).mask.fill_(True)
    rules = [{"match": "0", "skip": True}]
    recipe = recipe_of(
        method={"kind": method, **METHODS[method]},
        target={"sparsity": 0.5, "scope": scope},
        layer=rules,
    )
    pruner = GSPruner(model, recipe)
    pruner.prepare(N_STEPS, example=batches(1)[0][0], keep={"0": kept})
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=1e-2), batches())
    assert pruner.skipped == {}
    pruner.squash_mask()
    found = pruner.projections
    assert np.array_equal(found["0"].mask, kept.mask)
    assert np.array_equal(found["0"].row_order, kept.row_order)
    weight = pruner.weights[0]
    assert np.array_equal(weight.to_matrix(weight.dense) != 0, kept.mask)
    assert found["4"].density == pytest.approx(0.5, abs=0.03)
    scores = np.abs(weight.to_matrix(weight.dense))
    if method == "one-shot":
        assert found["0"].kept_score > 0.8 * scores.sum() and found["0"].bound is None


def test_masks_that_stay_cannot_be_dealt():
    model = prune(network(), recipe_of()).model
    pruner = GSPruner(model, recipe_of(channels={"deal": True}))
    with pytest.raises(GshwError) as caught:
        pruner.prepare(1, example=batches(1)[0][0], keep=prune(network(), recipe_of()).projections)
    assert str(caught.value) == "[channels] deal would move the weights under a mask to keep: 0"


# --- saved and resumed ---------------------------------------------------------------------------


def saved(*states: dict) -> list[dict]:
    """Through a file, as a checkpoint goes; nothing but tensors and plain values may be in it."""
    file = io.BytesIO()
    torch.save(list(states), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop", [1, 5, 7, 10])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(method, stop):
    data = batches()
    recipe = recipe_of(method={"kind": method, **METHODS[method]})

    def begin(seed: int):
        model = network(seed)
        pruner = GSPruner(model, recipe)
        pruner.prepare(N_STEPS, example=data[0][0])
        return model, pruner, torch.optim.Adam(model.parameters(), lr=1e-2)

    whole, wanted, optimiser = begin(0)
    train(whole, wanted, optimiser, data)
    first, pruner, optimiser = begin(0)
    train(first, pruner, optimiser, data[:stop])
    state = saved(pruner.state_dict(), first.state_dict(), optimiser.state_dict())
    # Another initialisation, so that nothing is right by chance.
    model, pruner, optimiser = begin(1)
    pruner.load_state_dict(state[0])
    model.load_state_dict(state[1])
    optimiser.load_state_dict(state[2])
    train(model, pruner, optimiser, data[stop:])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert pruner.log == wanted.log and pruner.warnings == wanted.warnings
    for name, projection in wanted.projections.items():
        found = pruner.projections[name]
        assert np.array_equal(found.mask, projection.mask)
        assert np.array_equal(found.row_order, projection.row_order)
        assert (found.kept_score, found.bound) == (projection.kept_score, projection.bound)
    pruner.squash_mask()


def test_the_masks_are_the_models_own():
    """In whichever order the two states are loaded."""
    first = prepared()
    state = saved(first.state_dict(), first.model.state_dict())
    for order in ((0, 1), (1, 0)):
        second = prepared(network(1))
        for which in order:
            (second, second.model)[which].load_state_dict(state[which])
        for name, found in first.projections.items():
            assert np.array_equal(second.projections[name].mask, found.mask)


def test_states_that_do_not_fit():
    state = prepared().state_dict()
    other = recipe_of(seed=1)
    with pytest.raises(GshwError) as caught:
        prepared(seed=1).load_state_dict(state)
    assert str(caught.value) == (
        f"the state was saved under another recipe ({recipe_of().hash[:8]}, not {other.hash[:8]})"
    )
    with pytest.raises(GshwError) as caught:
        prepared(n_steps=5).load_state_dict(state)
    assert str(caught.value) == "the state was saved in a training of 12 steps, not 5"
    wider = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruner = GSPruner(wider, recipe_of())
    pruner.prepare(N_STEPS)
    with pytest.raises(GshwError) as caught:
        pruner.load_state_dict(state)
    assert str(caught.value) == "the state is of weights 0, 4; the model has 0, 1"
    for bad in ({}, {"version": 0}, None):
        with pytest.raises(GshwError, match=r"^not a pruner's state of version 1$"):
            prepared().load_state_dict(bad)


# --- quantisation, dealing, one call -------------------------------------------------------------


def test_quantisation_goes_live_and_is_resumed():
    """With the mask live: what is pruned stays zero, and the resumed run goes the same way."""
    data = batches()
    recipe = recipe_of(
        method={"kind": "gradual", "updates": 3, "stop": 0.5}, quantisation={"aware_from": 0.75}
    )

    def begin(seed: int):
        model = network(seed)
        pruner = GSPruner(model, recipe)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
        pruner.prepare(N_STEPS, example=data[0][0], calibration=[x for x, _ in data[:2]])
        return model, pruner, optimiser

    whole, wanted, optimiser = begin(0)
    train(whole, wanted, optimiser, data[:8])
    assert wanted.quantisation is None
    train(whole, wanted, optimiser, data[8:9])
    assert sorted(wanted.quantisation.calibrations) == ["0", "4"]
    train(whole, wanted, optimiser, data[9:10])
    state = saved(wanted.state_dict(), whole.state_dict(), optimiser.state_dict())
    train(whole, wanted, optimiser, data[10:])
    model, pruner, optimiser = begin(1)
    pruner.load_state_dict(state[0])
    model.load_state_dict(state[1])
    optimiser.load_state_dict(state[2])
    train(model, pruner, optimiser, data[10:])
    x = data[0][0]
    assert torch.equal(model.eval()(x), whole.eval()(x))
    wanted.squash_mask()
    assert not masked_tensors(whole) and sorted(wanted.quantisation.calibrations) == ["0", "4"]
    for weight in wanted.weights:
        assert not weight.to_matrix(weight.dense)[~wanted.projections[weight.name].mask].any()


def test_quantisation_has_at_least_the_last_step():
    """The fraction rounds to all 20 steps."""
    pruner = GSPruner(network(), recipe_of(quantisation={"aware_from": 0.98}))
    pruner.prepare(20, calibration=[batches()[0][0]])
    for _ in range(18):
        pruner.step()
    assert pruner.quantisation is None
    pruner.step()
    assert pruner.quantisation is not None


def test_a_loop_may_quantise_itself():
    pruner = GSPruner(network(), recipe_of(quantisation={"aware_from": 0.0}))
    pruner.prepare(2, quantise=False)
    pruner.step()
    assert pruner.quantisation is None


def test_quantisation_needs_calibration():
    for calibration in (None, []):
        pruner = GSPruner(network(), recipe_of(quantisation={"aware_from": 0.5}))
        with pytest.raises(GshwError) as caught:
            pruner.prepare(2, calibration=calibration)
        assert str(caught.value) == "[quantisation] aware_from below 1 needs calibration batches"


def test_channels_are_dealt_before_pruning():
    """The network computes the same until it is pruned, and then keeps at least as much."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
    with torch.no_grad():
        # Every fourth channel is strong: all of them in one bank.
        model[2].weight[:, ::4] *= 10
    x = torch.randn(4, 8)
    wanted = model(x)
    plain = prune(copy.deepcopy(model), recipe_of(0.75))
    dealt = prune(model, recipe_of(0.75, channels={"deal": True}), example=x)
    assert plain.dealing is None and list(dealt.dealing.dealt) == ["2"]
    for module, _ in masked_tensors(model):
        weight_mask(module).mask.fill_(True)
    assert torch.allclose(model(x), wanted, atol=1e-5)
    kept = [pruner.projections["2"].kept_score for pruner in (plain, dealt)]
    assert kept[1] > 1.5 * kept[0]


def test_dealing_needs_an_example():
    pruner = GSPruner(network(), recipe_of(channels={"deal": True}))
    with pytest.raises(GshwError) as caught:
        pruner.prepare(2)
    assert str(caught.value) == (
        "[channels] deal needs an example batch to follow through the model"
    )
    assert not masked_tensors(pruner.model)


def test_one_call_compensates():
    """Kept weights make up for pruned ones: a smaller error of the output, in integer codes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    mixing = torch.randn(16, 16)
    data = [torch.randn(64, 16) @ mixing for _ in range(4)]
    dense = model[0].weight.detach().numpy().copy()
    method = {"kind": "gradual", "updates": 3}
    compensation = {"kind": "least-squares", "integer": True}
    width = {"weight_width": 8}
    recipe = recipe_of(0.5, method=method, compensation=compensation, quantisation=width)
    pruner = prune(model, recipe, calibration=data)
    weight = pruner.weights[0]
    mask = pruner.projections["0"].mask
    moments = collect_moments(model, [weight], data)["0"]
    solved = weight.to_matrix(weight.masked)
    error = output_error(dense, solved, moments)
    assert error < 0.75 * output_error(dense, dense * mask, moments)
    assert pruner.errors["0"].after == pytest.approx(error, rel=1e-3)
    assert not solved[~mask].any() and pruner.recipe.method.kind == "one-shot"
    codes = solved / np.abs(solved).max(axis=1, keepdims=True) * 127
    assert np.abs(codes - np.rint(codes)).max() < 1e-3


def test_compensation_may_stay_in_float():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    compensation = {"kind": "least-squares", "integer": False}
    pruner = prune(model, recipe_of(compensation=compensation), calibration=[torch.randn(64, 16)])
    solved = pruner.weights[0].to_matrix(pruner.weights[0].masked)
    codes = solved / np.abs(solved).max(axis=1, keepdims=True) * 127
    assert np.abs(codes - np.rint(codes)).max() > 0.1


def test_compensation_needs_calibration():
    model = network()
    with pytest.raises(GshwError) as caught:
        prune(model, recipe_of(compensation={"kind": "least-squares"}))
    assert str(caught.value) == "[compensation] kind 'least-squares' needs calibration batches"
    assert not masked_tensors(model)


@pytest.mark.parametrize("on", [True, False])
def test_batch_norm_is_estimated_anew(on):
    model = network()
    before = model[1].running_var.clone()
    recipe = recipe_of(0.75, compensation={"batch_norm": on})
    prune(model, recipe, calibration=[x for x, _ in batches(4)])
    assert torch.equal(model[1].running_var, before) != on
    if on:
        x = torch.cat([x for x, _ in batches(4)])
        spread = model[0](x).var(dim=(0, 2, 3))
        assert torch.allclose(model[1].running_var, spread, rtol=0.05)


def test_one_call_without_calibration():
    """The recipe's quantisation is the export's business where there is no training."""
    model = network()
    recipe = recipe_of(0.75, quantisation={"aware_from": 0.5}, method={"kind": "rigl"})
    pruner = prune(model, recipe)
    assert pruner.log == [(0, pytest.approx(0.75, abs=0.01))] and pruner.quantisation is None
    assert pruner.recipe.quantisation.aware_from == 1.0 and pruner.errors == {}
    pruner.squash_mask()
    assert (model[0].weight == 0).float().mean() == pytest.approx(0.75, abs=0.01)


# --- bad use -------------------------------------------------------------------------------------


def test_calls_out_of_order():
    pruner = GSPruner(network(), recipe_of())
    for call in (
        pruner.penalty,
        pruner.step,
        pruner.squash_mask,
        pruner.state_dict,
        lambda: pruner.projections,
        lambda: pruner.weights,
        lambda: pruner.load_state_dict({}),
    ):
        with pytest.raises(GshwError, match=r"^call prepare first$"):
            call()
    pruner.prepare(1)
    with pytest.raises(GshwError, match=r"^prepare was called already$"):
        pruner.prepare(1)
    pruner.squash_mask()
    for call in (pruner.step, pruner.squash_mask, pruner.state_dict):
        with pytest.raises(
            GshwError, match=r"^the masks are squashed; nothing is left to follow or to save$"
        ):
            call()
    assert pruner.penalty().item() == 0 and len(pruner.projections) == 2


def test_squash_before_the_last_update():
    pruner = prepared(method={"kind": "gradual", "updates": 2})
    pruner.step()
    with pytest.raises(GshwError) as caught:
        pruner.squash_mask()
    assert str(caught.value) == (
        "masks are final after step 6, not at step 1; go on training, or prepare for fewer steps"
    )
    assert masked_tensors(pruner.model)


@pytest.mark.parametrize("n_steps", [-1, 1.5, True])
def test_n_steps(n_steps):
    with pytest.raises(GshwError) as caught:
        prepared(n_steps=n_steps)
    assert str(caught.value) == f"n_steps must be an integer of at least 0, not {n_steps!r}"


MISTAKES = {
    "glob": (
        {"layer": [{"match": "conv*", "skip": True}]},
        "no layer matches 'conv*' of the recipe; the layers are 0, 4",
    ),
    "nothing left": (
        {"layer": [{"match": "*", "skip": True}]},
        "no layer is left to prune (0: the recipe skips it; 4: the recipe skips it)",
    ),
    "impossible": (
        {"layer": [{"match": "4", "sparsity": 0.999}]},
        "layer '4': sparsity 0.999 leaves 0 blocks, less than one group of 4; possible is at most "
        "0.9954",
    ),
    "no network budget": (
        {"pattern": {"kind": "node"}, "target": {"sparsity": 0.5, "scope": "network"}},
        "whole rows has no budget over several layers; use one per layer",
    ),
    "too many updates": (
        {"method": {"kind": "gradual", "updates": 20}},
        "method 'gradual' makes 21 updates between steps 0 and 6, more than there are steps; "
        "train longer or lower updates",
    ),
    "score function": (
        {"score": {"kind": "function", "function": "numpy:nothing"}},
        "score function 'numpy:nothing': numpy has no function 'nothing'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_the_model_alone(mistake):
    sections, message = MISTAKES[mistake]
    model = network()
    with pytest.raises(GshwError) as caught:
        prepared(model, **sections)
    assert str(caught.value) == message
    assert not masked_tensors(model)
    for name, tensor in network().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_scores_that_are_not_finite():
    model = network()
    with torch.no_grad():
        model[4].weight[1, 2] = torch.nan
    with pytest.raises(GshwError, match=r"^layer '4': scores must be finite, not nan at \(1, "):
        prepared(model)


# --- several processes ---------------------------------------------------------------------------


def ranks(rank: int, folder: str) -> None:
    """Two ranks of other data and other scores: the masks are rank 0's on both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for method in ("gradual", "rigl", "mest"):
        model = network()
        recipe = recipe_of(method={"kind": method, "updates": 2})
        pruner = GSPruner(model, recipe)
        pruner.prepare(6, example=batches(1)[0][0])
        parallel = nn.parallel.DistributedDataParallel(model)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for x, y in batches(6, seed=rank):
            optimiser.zero_grad()
            (loss_of(parallel, x, y) + pruner.penalty()).backward()
            optimiser.step()
            if rank:
                with torch.no_grad():
                    # What rounding may do on another machine, larger.
                    dense_weight(model[4]).mul_(1 + 0.1 * torch.rand(8, 108))
            pruner.step()
        for name, found in pruner.projections.items():
            both = [torch.zeros(found.mask.shape, dtype=torch.uint8) for _ in range(2)]
            dist.all_gather(both, torch.from_numpy(found.mask.astype(np.uint8)))
            assert torch.equal(*both), name
            orders = [torch.zeros(len(found.row_order), dtype=torch.int64) for _ in range(2)]
            dist.all_gather(orders, torch.from_numpy(found.row_order))
            assert torch.equal(*orders), name
    try:
        prepared(layer=[{"match": "4", "sparsity": 0.999}])
    except GshwError as error:
        assert "possible is at most" in str(error)
    else:
        raise AssertionError("rank 0's error must reach both")
    try:
        GSPruner(network(), recipe_of(quantisation={"aware_from": 0.5})).prepare(
            2, calibration=[batches(1)[0][0]]
        )
    except GshwError as error:
        assert str(error) == (
            "[quantisation] aware_from below 1: DDP must wrap the model anew then; have the "
            "training loop attach the quantisation, and prepare with quantise=False"
        )
    else:
        raise AssertionError("DDP would break")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_masks_are_equal_on_all_ranks(tmp_path):
    spawn(ranks, args=(str(tmp_path),), nprocs=2)
