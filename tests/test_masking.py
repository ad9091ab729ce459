"""Masks in the model: in the forward pass, in the state dict, and never undone by training."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn

from gshw.errors import GshwError
from pruning.models.masking import (
    attach_masks,
    capture_gradients,
    dense_weight,
    masked_tensors,
    set_mask,
    squash_masks,
    squashed_state_dict,
    weight_mask,
)


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


def test_the_row_order_goes_with_the_mask():
    """Into the state dict and back, whichever of the two masks has one; a new mask forgets it."""
    ordered, plain = seeded(nn.Linear(6, 4)), seeded(nn.Linear(6, 4))
    order = torch.tensor([2, 0, 3, 1])
    set_mask(ordered, random_mask((4, 6), 0), row_order=order)
    set_mask(plain, random_mask((4, 6), 1))
    key = "parametrizations.weight.0.row_order"
    with_order, without = (copy.deepcopy(m.state_dict()) for m in (ordered, plain))
    assert torch.equal(with_order[key], order) and key not in without
    order[0] = 9
    assert weight_mask(ordered).row_order.tolist() == [2, 0, 3, 1]
    plain.load_state_dict(with_order)
    assert weight_mask(plain).row_order.tolist() == [2, 0, 3, 1]
    ordered.load_state_dict(without)
    assert weight_mask(ordered).row_order is None
    fresh = nn.Linear(6, 4)
    attach_masks(fresh, with_order)
    fresh.load_state_dict(with_order)
    assert weight_mask(fresh).row_order.tolist() == [2, 0, 3, 1]
    set_mask(fresh, random_mask((4, 6)))
    assert weight_mask(fresh).row_order is None


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


def test_squash_keeps_the_parameters_and_the_momentum():
    """An optimiser made before the masks trains on after the squash, as if nothing had happened."""
    model, plain = small_model(), small_model()
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(4))

    def trained(model, *, squash: bool) -> tuple[dict, torch.optim.Optimizer]:
        steps = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for index in (0, 3):
            set_mask(model[index], torch.ones_like(model[index].weight, dtype=torch.bool))
        for step in range(4):
            if step == 2 and squash:
                squash_masks(model)
            steps.zero_grad()
            model(x).square().sum().backward()
            steps.step()
        squash_masks(model)
        return model.state_dict(), steps

    before = [id(parameter) for parameter in model.parameters()]
    state, steps = trained(model, squash=True)
    wanted, _ = trained(plain, squash=False)
    assert sorted(map(id, model.parameters())) == sorted(before)
    held = [id(p) for group in steps.param_groups for p in group["params"]]
    assert sorted(held) == sorted(before)
    assert all(steps.state[parameter] for parameter in model.parameters())
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name


def test_squash_also_writes_what_else_parametrises_the_weight():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    module = seeded(nn.Linear(6, 4))
    mask, parameter = random_mask((4, 6)), module.weight
    before = parameter.detach().clone()
    set_mask(module, mask)
    nn.utils.parametrize.register_parametrization(module, "weight", Half())
    squash_masks(module)
    assert module.weight is parameter
    assert torch.equal(parameter, torch.where(mask, before / 2, 0))


def test_what_lies_below_the_mask_never_shows():
    """Neither NaN nor the sign of a zero."""
    module = seeded(nn.Linear(6, 4))
    mask = random_mask((4, 6))
    with torch.no_grad():
        module.weight[~mask] = float("nan")
    set_mask(module, mask)
    assert not module.weight[~mask].any()
    module.weight.sum().backward()
    assert torch.equal(dense_weight(module).grad, mask.float())
    with torch.no_grad():
        dense_weight(module)[~mask] = -1
    assert not torch.signbit(module.weight[~mask]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = masked_model().to(dtype)
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(4)).to(dtype)
    y = model(x)
    y.float().square().sum().backward()
    assert y.dtype == model[3].weight.dtype == dense_weight(model[3]).grad.dtype == dtype
    assert weight_mask(model[3]).mask.dtype == torch.bool
    squash_masks(model)
    assert torch.equal(model(x), y)


# --- copies, files, graphs -----------------------------------------------------------------------


def test_attach_masks_to_a_plain_model():
    """A state dict with masks fits a plain model once its masks are attached."""
    model, other = masked_model(), seeded(small_model(), 2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert attach_masks(other, state) == ["0.weight", "3.weight"]
    other.load_state_dict(state)
    for index in (0, 3):
        assert torch.equal(other[index].weight, model[index].weight)
    assert attach_masks(other, small_model().state_dict()) == []


def test_attach_masks_to_one_module():
    module = nn.Linear(3, 2)
    mask = random_mask((2, 3))
    assert attach_masks(module, {"parametrizations.weight.0.mask": mask}) == ["weight"]
    assert torch.equal(weight_mask(module).mask, mask)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("9.parametrizations.weight.0.mask", (3, 2, 3), "no tensor '9.weight' for the mask of"),
        ("0.parametrizations.gain.0.mask", (3, 2, 3), "no tensor '0.gain' for the mask of"),
        (
            "0.parametrizations.weight.0.mask",
            (3, 2),
            "tensor '0.weight': mask must have its shape (3, 2, 3), not (3, 2)",
        ),
    ],
)
def test_attach_masks_that_do_not_fit(key, shape, message):
    model = small_model()
    state = {"3.parametrizations.weight.0.mask": random_mask((2, 12)), key: random_mask(shape)}
    with pytest.raises(GshwError, match=re.escape(message)):
        attach_masks(model, state)
    assert masked_tensors(model) == []


def test_squashed_state_dict_leaves_the_model_alone():
    model = masked_model()
    state = squashed_state_dict(model)
    assert len(masked_tensors(model)) == 2
    assert set(state) == set(small_model().state_dict())
    squash_masks(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    module = nn.Linear(3, 2)
    set_mask(module, random_mask((2, 3)))
    assert set(squashed_state_dict(module)) == {"weight", "bias"}


def test_pickle():
    """Torch pickles no parametrised module; a squashed one is plain again."""
    model = masked_model()
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model)
    squash_masks(model)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin[3].weight, model[3].weight)
    masks = pickle.loads(pickle.dumps(weight_mask(masked_model()[3])))
    assert torch.equal(masks.mask, weight_mask(masked_model()[3]).mask)


def test_copies_squash_apart():
    """Torch keeps a tensor's property on a class that copies share; ours do not."""
    model = masked_model()
    twin = copy.deepcopy(model)
    third = copy.deepcopy(twin)
    weight = model[3].weight.detach().clone()
    squash_masks(twin)
    assert torch.equal(model[3].weight, weight) and torch.equal(third[3].weight, weight)
    squash_masks(model)
    assert type(model[3]) is nn.Linear and torch.equal(third[3].weight, weight)


def test_a_copy_takes_a_second_mask_alone():
    model = nn.LSTM(3, 4)
    set_mask(model, random_mask((16, 3)), "weight_ih_l0")
    twin = copy.deepcopy(model)
    set_mask(twin, random_mask((16, 4)), "weight_hh_l0")
    assert [name for _, name in masked_tensors(model)] == ["weight_ih_l0"]
    assert isinstance(model.weight_hh_l0, nn.Parameter)
    assert len(masked_tensors(twin)) == 2


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "lstm-projected": lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2),
    "gru": lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True),
    "rnn": lambda: nn.RNN(3, 4, num_layers=2, bias=False, nonlinearity="relu"),
}


def masked_recurrent(kind: str) -> tuple[nn.RNNBase, nn.RNNBase]:
    """With masks on all matrices, and the same with the zeros in plain weights."""
    module, plain = seeded(RECURRENT[kind]()), seeded(RECURRENT[kind]())
    for seed, name in enumerate(n for n in module._flat_weights_names if "weight" in n):
        mask = random_mask(getattr(module, name).shape, seed)
        set_mask(module, mask, name)
        with torch.no_grad():
            getattr(plain, name)[~mask] = 0
    return module, plain


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_weights(kind):
    """RNNs keep a list of their weights beside them; it must not bypass the masks."""
    module, plain = masked_recurrent(kind)
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)) / 4
    wanted = plain(x)[0]
    assert torch.equal(module(x)[0], wanted)
    module(x)[0].square().sum().backward()
    plain(x)[0].square().sum().backward()
    for owner, name in masked_tensors(module):
        mask = weight_mask(owner, name).mask
        gradient = dense_weight(owner, name).grad
        assert not gradient[~mask].any() and gradient.any()
        torch.testing.assert_close(gradient, torch.where(mask, getattr(plain, name).grad, 0))
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x)[0], wanted)
    squash_masks(twin)
    assert type(twin) is type(plain) and torch.equal(twin(x)[0], wanted)
    assert torch.equal(module(x)[0], wanted)
    names = [name for name in module._flat_weights_names if "weight" in name]
    set_mask(module, torch.zeros_like(weight_mask(module, names[0]).mask), names[0])
    assert not torch.equal(module(x)[0], wanted)
    assert module.double()(x.double())[0].dtype == torch.float64
    squash_masks(module)
    assert pickle.loads(pickle.dumps(module)).weight_ih_l0.dtype == torch.float64


ATTENTION = {
    "packed": ({}, ("in_proj_weight",), 8),
    "separate": ({"kdim": 6, "vdim": 6}, ("q_proj_weight", "k_proj_weight", "v_proj_weight"), 6),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_weights(kind, training):
    """Also on the fused path that attention takes in evaluation without gradients."""
    options, names, key_size = ATTENTION[kind]
    module = seeded(nn.MultiheadAttention(8, 2, batch_first=True, **options)).train(training)
    plain = copy.deepcopy(module)
    places = [(module, plain, name) for name in names]
    for masked, other, name in [*places, (module.out_proj, plain.out_proj, "weight")]:
        mask = random_mask(getattr(masked, name).shape)
        set_mask(masked, mask, name)
        with torch.no_grad():
            getattr(other, name)[~mask] = 0
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 5, 8, generator=generator)
    key = query if key_size == 8 else torch.randn(2, 5, key_size, generator=generator)
    with torch.set_grad_enabled(training):
        wanted = plain(query, key, key)[0]
        torch.testing.assert_close(module(query, key, key)[0], wanted)
    squash_masks(module)
    assert type(module) is nn.MultiheadAttention
    torch.testing.assert_close(module(query, key, key)[0], wanted)


def test_transformer_layer_in_evaluation():
    """Its fused path reads the weights of its parts."""
    layer = seeded(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))
    places = [(layer.self_attn, "in_proj_weight"), (layer.self_attn.out_proj, "weight")]
    places += [(layer.linear1, "weight"), (layer.linear2, "weight")]
    for module, name in places:
        set_mask(module, random_mask(getattr(module, name).shape), name)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    trained = layer(x)
    model = nn.TransformerEncoder(layer.eval(), 1).eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), trained)
        torch.testing.assert_close(model(x), trained)


GRAPH_MODELS = {
    "convolution": (masked_model, (4, 2, 6)),
    "recurrent": (lambda: masked_recurrent("lstm")[0], (5, 2, 3)),
}


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", GRAPH_MODELS)
def test_torch_export(kind):
    """The exported program holds the mask as a buffer."""
    make, shape = GRAPH_MODELS[kind]
    model = make().eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    program = torch.export.export(model, (x,))
    assert any(name.endswith(".mask") for name in program.state_dict)
    torch.testing.assert_close(first(program.module()(x)), first(model(x)))


@pytest.mark.parametrize("kind", GRAPH_MODELS)
def test_torch_compile(kind):
    """Forward and backward are as uncompiled, also after a mask has changed in place."""
    make, shape = GRAPH_MODELS[kind]
    model = make()
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for seed in (1, 2):
        torch.testing.assert_close(first(compiled(x)), first(twin(x)))
        for one in (compiled, twin):
            one.zero_grad()
            first(one(x)).square().sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        for (owner, name), (other, _) in zip(masked_tensors(model), masked_tensors(twin)):
            mask = random_mask(weight_mask(owner, name).mask.shape, seed)
            set_mask(owner, mask, name)
            set_mask(other, mask, name)


# --- dense gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_captured_gradient_is_that_of_the_masked_weight(compiled):
    """At all places, equal to the gradient of a plain weight of the same values; summed."""
    model, plain = masked_model(), small_model()
    plain.load_state_dict(squashed_state_dict(model))
    xs = torch.randn(2, 4, 2, 6, generator=torch.Generator().manual_seed(4))
    torch.compiler.reset()
    runs = torch.compile(model, backend="aot_eager") if compiled else model
    runs(xs[0]).square().sum().backward()
    assert weight_mask(model[3]).take_gradient() is None
    with capture_gradients(model):
        for x in xs:
            runs(x).square().sum().backward()
            plain(x).square().sum().backward()
    runs(xs[0]).square().sum().backward()
    for index in (0, 3):
        mask = weight_mask(model[index])
        gradient = mask.take_gradient()
        torch.testing.assert_close(gradient, plain[index].weight.grad)
        assert gradient[~mask.mask].any()
        assert mask.take_gradient() is None


def test_capturing_forgets_what_was_not_taken():
    model = masked_model()
    x = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(4))
    found = []
    for _ in range(2):
        with capture_gradients(model):
            model(x).square().sum().backward()
        found.append(weight_mask(model[0])._gradient.clone())
    assert torch.equal(*found)


def test_captured_gradient_of_a_frozen_weight_is_none():
    model = masked_model().requires_grad_(False)
    x = torch.randn(4, 2, 6, requires_grad=True)
    with capture_gradients(model):
        model(x).sum().backward()
    assert weight_mask(model[0]).take_gradient() is None
