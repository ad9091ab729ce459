"""Permuted models compute what they computed, and what cannot be permuted says why.

The oracle is the model itself, run before and after in double precision on every free space.
"""

import copy
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from gshw.errors import GshwError
from pruning.channels.permute import ChannelSpace, apply_permutation, channel_spaces
from pruning.models.masking import set_mask

torch.set_num_threads(1)


class Net(nn.Module):
    """Some modules and a function that calls them."""

    def __init__(self, body: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.body(self, x)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter and buffer different in every channel, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(7))


# --- models --------------------------------------------------------------------------------------


def cnn() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.PReLU(6),
        nn.AvgPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(24, 10),
        nn.BatchNorm1d(10),
        nn.GELU(),
        nn.Linear(10, 4),
    )
    return model, images(2, 3, 12, 12)


def residual() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        x = F.relu(net.stem_norm(net.stem(x)), inplace=True)
        y = net.b(F.relu(net.a(x)))
        x = torch.relu(y + x)
        y = net.d(torch.relu_(net.c(x)))
        y += net.down_norm(net.down(x))
        x = y.relu() * 1.5
        return net.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    parts = {
        "stem": nn.Conv2d(3, 6, 3, padding=1, bias=False),
        "stem_norm": nn.BatchNorm2d(6),
        "a": nn.Conv2d(6, 5, 3, padding=1),
        "b": nn.Conv2d(5, 6, 3, padding=1),
        "c": nn.Conv2d(6, 7, 3, stride=2, padding=1),
        "d": nn.Conv2d(7, 9, 3, padding=1),
        "down": nn.Conv2d(6, 9, 1, stride=2),
        "down_norm": nn.BatchNorm2d(9, affine=False),
        "head": nn.Linear(9, 4),
    }
    return Net(body, **parts), images(2, 3, 8, 8)


def dense_net() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        x = net.stem(x)
        x = torch.cat([x, net.a(F.relu(net.norm_a(x)))], 1)
        x = torch.cat((x, net.b(F.relu(net.norm_b(x)))), dim=1)
        x = net.transition(net.norm_c(x))
        left, right = torch.cat([x, net.c(x)], 1).split([7, 3], 1)
        return net.head(torch.cat([right, left], 1).mean((2, 3)))

    parts = {
        "stem": nn.Conv2d(2, 6, 3, padding=1),
        "norm_a": nn.BatchNorm2d(6),
        "a": nn.Conv2d(6, 4, 3, padding=1),
        "norm_b": nn.InstanceNorm2d(10, affine=True),
        "b": nn.Conv2d(10, 4, 3, padding=1),
        "norm_c": nn.BatchNorm2d(14),
        "transition": nn.Conv2d(14, 7, 1),
        "c": nn.Conv2d(7, 3, 1),
        "head": nn.Linear(10, 4),
    }
    return Net(body, **parts), images(2, 2, 6, 6)


def separable() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        x = F.hardswish(net.expand(net.twice(net.stem(x))))
        x = net.norm(net.depthwise(x))
        gate = x.mean([2, 3]).unsqueeze(-1).unsqueeze(-1)
        gate = torch.sigmoid(net.excite(F.relu(net.squeeze(gate))))
        x = net.project(x * gate.expand_as(x)) * net.scale.view(1, -1, 1, 1)
        x = net.up(F.pad(x, (1, 0, 1, 0)))
        return net.head(F.interpolate(x, scale_factor=2.0)[:, :, ::2, -1].amax(2))

    parts = {
        "stem": nn.Conv2d(2, 4, 3),
        "twice": nn.Conv2d(4, 8, 1, groups=4),
        "expand": nn.Conv2d(8, 7, 1),
        "depthwise": nn.Conv2d(7, 7, 3, groups=7),
        "norm": nn.GroupNorm(1, 7),
        "squeeze": nn.Conv2d(7, 4, 1),
        "excite": nn.Conv2d(4, 7, 1),
        "project": nn.Conv2d(7, 5, 1),
        "scale": nn.Parameter(torch.zeros(5)),
        "up": nn.ConvTranspose2d(5, 6, 2, stride=2),
        "head": nn.Linear(6, 3),
    }
    return Net(body, **parts), images(2, 2, 8, 8)


def language_model() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        y, _ = net.lstm(net.drop(net.embed(x)))
        return net.decode(torch.tanh(net.mix(y)))

    parts = {
        "embed": nn.Embedding(11, 6),
        "drop": nn.Dropout(),
        "lstm": nn.LSTM(6, 5, 2, batch_first=True),
        "mix": nn.Linear(5, 7),
        "decode": nn.Linear(7, 11),
    }
    return Net(body, **parts), tokens(2, 4)


def recurrent_classifier() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        y, h = net.gru(net.embed(x))
        _, (state, cell) = net.lstm(y)
        both = torch.cat([state[-2], state[-1]], dim=-1) + torch.cat([cell[-2], cell[-1]], dim=-1)
        z, last = net.rnn(y)
        return net.a(both), net.b(h[-1] * 2), net.c(z[-1]) + net.c(last[0])

    parts = {
        "embed": nn.Embedding(11, 6),
        "gru": nn.GRU(6, 5, 2),
        "lstm": nn.LSTM(5, 4, bidirectional=True),
        "rnn": nn.RNN(5, 3, bias=False),
        "a": nn.Linear(8, 3),
        "b": nn.Linear(5, 3),
        "c": nn.Linear(3, 2),
    }
    return Net(body, **parts), tokens(4, 2)


def temporal() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        x = net.embed(x) + net.place
        x = net.norm(x).transpose(1, 2)
        y = F.pad(x, (2, 0))
        x = torch.cat([net.a(y), net.b(y)], 1)
        filtered, gate = torch.chunk(x, 2, dim=1)
        x = net.c(filtered.tanh() * gate.sigmoid()).permute(0, 2, 1)
        return net.decode(x.reshape(-1, 5)), net.flat(x.reshape(2, 40))

    parts = {
        "embed": nn.Embedding(11, 6),
        "place": nn.Parameter(torch.zeros(8, 6)),
        "norm": nn.LayerNorm(6),
        "a": nn.Conv1d(6, 7, 3),
        "b": nn.Conv1d(6, 7, 3),
        "c": nn.Conv1d(7, 5, 1),
        "decode": nn.Linear(5, 11),
        "flat": nn.Linear(40, 3),
    }
    return Net(body, **parts), tokens(2, 8)


def reshaping() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        x = net.a(x)
        x = net.b(x.flatten(2).view(2, 4, 3, 3)).view(2, -1)
        x = net.wide(x.unflatten(1, (5, 9)).sum(-1, keepdim=True).squeeze(-1))
        return net.a_again(torch.softmax(x / 100, 1).view(2, 6, 1, 1)[..., 0, 0])

    parts = {
        "a": nn.Conv2d(3, 4, 1),
        "b": nn.Conv2d(4, 5, 1),
        "wide": nn.Linear(5, 6),
        "a_again": nn.Linear(6, 2),
    }
    return Net(body, **parts), images(2, 3, 3, 3)


def used_twice() -> tuple[nn.Module, Tensor]:
    def body(net, x):
        x = net.a(x)
        for _ in range(2):
            x = F.relu(net.b(x))
        return net.c(x)

    return (
        Net(body, a=nn.Linear(3, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 2)),
        images(2, 3),
    )


MODELS = {
    # name: model, and what its free spaces are made and read by
    cnn: [("0", "4"), ("4", "9"), ("9", "12")],
    residual: [("stem b", "a c down"), ("a", "b"), ("c", "d"), ("d down", "head")],
    dense_net: [
        ("stem", "a b transition"),
        ("a", "b transition"),
        ("b", "transition"),
        ("transition", "c head"),
        ("c", "head"),
    ],
    separable: [
        ("stem", "expand"),
        ("expand excite", "squeeze project"),
        ("squeeze", "excite"),
        ("project", "up"),
        ("up", "head"),
    ],
    language_model: [
        ("embed", "lstm.weight_ih_l0"),
        ("lstm.weight_hh_l0", "lstm.weight_hh_l0 lstm.weight_ih_l1"),
        ("lstm.weight_hh_l1", "lstm.weight_hh_l1 mix"),
        ("mix", "decode"),
    ],
    recurrent_classifier: [
        ("embed", "gru.weight_ih_l0"),
        ("gru.weight_hh_l0", "gru.weight_hh_l0 gru.weight_ih_l1"),
        (
            "gru.weight_hh_l1",
            "gru.weight_hh_l1 lstm.weight_ih_l0 lstm.weight_ih_l0_reverse rnn.weight_ih_l0 b",
        ),
        ("lstm.weight_hh_l0", "lstm.weight_hh_l0 a"),
        ("lstm.weight_hh_l0_reverse", "lstm.weight_hh_l0_reverse a"),
        ("rnn.weight_hh_l0", "rnn.weight_hh_l0 c"),
    ],
    temporal: [("embed", "a b"), ("a b", "c"), ("c", "decode flat")],
    reshaping: [("a", "b"), ("b", "wide"), ("wide", "a_again")],
    used_twice: [("a b", "b c")],
}


def short(names: tuple[str, ...]) -> str:
    return " ".join(name.removesuffix(".weight") for name in names)


def flat(output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def run(model: nn.Module, example: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flat(model(example.clone()))


def assert_same(before: list[Tensor], after: list[Tensor]) -> None:
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_permuted_model_computes_the_same(make):
    model, example = make()
    model = randomise(model, 1)
    before = run(model, example)
    free = [space for space in channel_spaces(model, example) if space.refused is None]
    assert [(short(s.producers), short(s.consumers)) for s in free if s.consumers] == MODELS[make]
    rng = np.random.default_rng(3)
    identities = [id(tensor) for tensor in model.parameters()]
    for space in free:
        state = copy.deepcopy(model.state_dict())
        order = rng.permutation(space.n_channels)
        order = order if (order != np.arange(order.size)).any() else order[::-1].copy()
        apply_permutation(model, space, order)
        assert_same(before, run(model, example))
        touched = {name for name, t in model.state_dict().items() if not t.equal(state[name])}
        assert touched == {part.tensor for part in space.slices}
    assert [id(tensor) for tensor in model.parameters()] == identities


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_slice_matters(make):
    """The check above sees any tensor that a permutation forgets."""
    model, example = make()
    model = randomise(model, 2)
    before = run(model, example)
    for space in channel_spaces(model, example):
        if space.refused is None and space.consumers:
            for part in space.slices:
                rest = tuple(other for other in space.slices if other != part)
                broken = ChannelSpace(
                    n_channels=space.n_channels, producers=(), consumers=(), slices=rest
                )
                other = copy.deepcopy(model)
                apply_permutation(other, broken, np.roll(np.arange(space.n_channels), 1))
                after = run(other, example)
                worst = max(float((a - b).abs().max()) for a, b in zip(before, after))
                assert worst > 1e-9, part


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_other_space_has_a_reason(make):
    """Inputs, outputs, vocabularies and places; nothing is refused without need."""
    model, example = make()
    reasons = {s.refused for s in channel_spaces(randomise(model, 1), example)} - {None}
    allowed = ("they are the model's input", "they are in the model's output", "they are the entr")
    extra = () if make is not temporal else ("'add' joins them with others: they are the model's",)
    assert reasons and all(reason.startswith(allowed + extra) for reason in reasons)


def test_training_mode_and_statistics_are_left_alone():
    model, example = cnn()
    model = randomise(model, 1).train()
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    channel_spaces(model, example)
    assert [m.training for m in model] == [i != 1 for i in range(len(model))]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_copy_of_the_model_takes_the_same_permutation():
    model, example = residual()
    model = randomise(model, 1)
    space = next(s for s in channel_spaces(model, example) if s.producers == ("a.weight",))
    other = copy.deepcopy(model)
    apply_permutation(other, space, np.array([4, 2, 0, 1, 3]))
    assert_same(run(model, example), run(other, example))
    assert torch.equal(other.a.weight, model.a.weight[[4, 2, 0, 1, 3]])
    assert torch.equal(other.b.weight, model.b.weight[:, [4, 2, 0, 1, 3]])


# --- refusals ------------------------------------------------------------------------------------


@fx.wrap
def wrapped(x):
    return x.flip(1)


@fx.wrap
def boxed(x):
    return {"x": x}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.attend = nn.MultiheadAttention(4, 2)
        self.b = nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.attend(x, x, x)[0])


def two_linear(body: Callable, n: int = 4, n_read: int | None = None, **parts) -> nn.Module:
    return Net(body, a=nn.Linear(3, n), b=nn.Linear(n_read or n, 2), **parts)


def two_conv(body: Callable, n_read: int = 4, **parts) -> nn.Module:
    return Net(body, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(n_read, 2, 1), **parts)


LINEAR, PIXELS = (2, 3), (2, 3, 4, 4)
REFUSALS = {
    "function": (
        two_linear(lambda n, x: n.b(torch.cumsum(n.a(x), 1))),
        LINEAR,
        "they pass 'cumsum' (cumsum), which may mix them",
    ),
    "wrapped": (
        two_linear(lambda n, x: n.b(wrapped(n.a(x)))),
        LINEAR,
        "they pass 'wrapped' (wrapped), which may mix them",
    ),
    "dictionary": (
        two_linear(lambda n, x: n.b(boxed(n.a(x))["x"])),
        LINEAR,
        "they pass 'boxed' (boxed), which may mix them",
    ),
    "number": (
        two_linear(lambda n, x: n.b(n.a(x)) + n.a(x).tolist()[0][1]),
        LINEAR,
        "they pass 'tolist' (tolist), which may mix them",
    ),
    "method": (
        two_linear(lambda n, x: n.b(n.a(x).roll(1, 1))),
        LINEAR,
        "they pass 'roll' (roll), which may mix them",
    ),
    "transposed by attribute": (
        two_linear(lambda n, x: n.b(n.a(x).T.T)),
        LINEAR,
        "they pass 'getattr_1' (getattr), which may mix them",
    ),
    "module": (
        two_linear(lambda n, x: n.b(n.glu(n.a(x))), 8, 4, glu=nn.GLU()),
        LINEAR,
        "they pass 'glu' (GLU), which may mix them",
    ),
    "attention": (
        Attending(),
        (2, 2, 3),
        "they pass 'attend' (MultiheadAttention), which may mix them",
    ),
    "group norm": (
        two_conv(lambda n, x: n.b(n.norm(n.a(x))), norm=nn.GroupNorm(2, 4)),
        PIXELS,
        "they pass 'norm' (GroupNorm), which may mix them",
    ),
    "groups": (
        two_conv(lambda n, x: n.b(n.grouped(n.a(x))), grouped=nn.Conv2d(4, 4, 1, groups=2)),
        PIXELS,
        "they belong to the 2 groups of 'grouped'",
    ),
    "shuffle": (
        two_conv(
            lambda n, x: n.b(n.a(x).view(2, 2, 2, 4, 4).transpose(1, 2).reshape(2, 4, 4, 4))
        ),
        PIXELS,
        "'view' reshapes (4,) to (2, 2) across them",
    ),
    "input added": (
        Net(lambda n, x: n.b(n.a(x) + x), a=nn.Linear(3, 3), b=nn.Linear(3, 2)),
        LINEAR,
        "'add' joins them with others: they are the model's input 'x'",
    ),
    "misaligned": (
        two_linear(lambda n, x: n.b(n.a(x) + torch.cat([n.c(x), n.c(x)], 1)), c=nn.Linear(3, 2)),
        LINEAR,
        "'add' joins channels that are concatenated or flattened differently",
    ),
    "one": (
        two_linear(lambda n, x: n.b(n.a(x) + n.a(x)[:, 1:2] + n.a(x)[:, 0, None])),
        LINEAR,
        "'getitem' takes 1:2 of them",
    ),
    "index": (
        two_linear(lambda n, x: n.b(n.a(x) + n.a(x)[:, 0, None])),
        LINEAR,
        "'getitem' takes one of them",
    ),
    "step": (
        two_linear(lambda n, x: n.b(n.a(x)[:, ::2]), 4, 2),
        LINEAR,
        "'getitem' takes them in steps of 2",
    ),
    "mask": (
        two_linear(lambda n, x: n.b(n.a(x)[:, [3, 2, 1, 0]])),
        LINEAR,
        "they pass 'getitem' (getitem), which may mix them",
    ),
    "split": (
        two_linear(lambda n, x: n.b(n.a(x).chunk(2, 1)[0]), 4, 2),
        LINEAR,
        "'chunk' takes 0:2 of them",
    ),
    "pixels": (
        two_conv(lambda n, x: n.b(n.a(x).transpose(1, 2))),
        PIXELS,
        "they are pixels of 'b'",
    ),
    "pooled": (
        two_linear(lambda n, x: n.b(n.pool(n.a(x)[:, None])[:, 0]), 4, 2, pool=nn.MaxPool1d(2)),
        LINEAR,
        "they are pixels of 'pool'",
    ),
    "initial state": (
        two_linear(lambda n, x: n.b(n.rnn(n.a(x), n.a(x)[:1])[0]), rnn=nn.GRU(4, 4)),
        (2, 2, 3),
        "they pass 'rnn', which is given its initial state",
    ),
    "projection": (
        two_linear(lambda n, x: n.b(n.rnn(n.a(x))[0]), 4, 2, rnn=nn.LSTM(4, 4, proj_size=2)),
        (2, 2, 3),
        "they pass 'rnn', an LSTM with a projection",
    ),
    "time": (
        two_linear(lambda n, x: n.b(n.rnn(n.a(x).transpose(0, 2))[0]), 4, 2, rnn=nn.GRU(2, 2)),
        (2, 2, 3),
        "they are time steps or samples of 'rnn'",
    ),
    "output": (
        two_linear(lambda n, x: {"y": n.b(n.a(x)), "features": n.a(x)}),
        LINEAR,
        "they are in the model's output",
    ),
    "constant": (
        two_linear(lambda n, x: n.b(n.a(x) * torch.tensor([1, 2, 3, 4]))),
        LINEAR,
        "'mul' joins them with others: they are the constant '_tensor_constant0'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_the_reason(case):
    model, shape, reason = REFUSALS[case]
    model = randomise(model, 1)
    spaces = channel_spaces(model, images(*shape))
    made_by_a = [space for space in spaces if "a.weight" in space.producers]
    assert [space.refused for space in made_by_a] == [reason]
    for space in spaces:
        assert (
            case == "projection" or space.refused is not None or "a.weight" not in space.consumers
        )


def test_tied_embedding_keeps_its_order():
    def body(net, x):
        return net.decode(net.embed(x))

    embed, decode = nn.Embedding(11, 6), nn.Linear(6, 11)
    decode.weight = embed.weight
    model = randomise(Net(body, embed=embed, decode=decode), 1)
    example = tokens(2, 4)
    before = run(model, example)
    entries, features = channel_spaces(model, example)
    assert entries.refused == "they are the entries of 'embed'"
    assert (features.producers, features.consumers) == (("embed.weight",), ("decode.weight",))
    # One tensor, which must be permuted once.
    assert [part.tensor for part in features.slices] == ["embed.weight"]
    apply_permutation(model, features, np.array([5, 3, 1, 0, 2, 4]))
    assert_same(before, run(model, example))


def test_masked_and_computed_weights_keep_their_order():
    model, example = cnn()
    model = randomise(model, 1)
    space = next(s for s in channel_spaces(model, example) if s.producers == ("4.weight",))
    set_mask(model[4], torch.ones(6, 8, 3, 3, dtype=torch.bool))
    reason = "they are held by '4.weight', which is masked or parametrised"
    found = {s.producers: s.refused for s in channel_spaces(model, example)}
    assert found["0.weight",] == found["4.weight",] == reason
    assert found["9.weight",] is None
    message = "tensor '4.weight' is masked; permute channels before masks are attached"
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        apply_permutation(model, space, np.arange(6)[::-1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model, example = cnn()
    model = randomise(model, 1)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[4])
    found = {s.producers: s.refused for s in channel_spaces(model, example)}
    assert found["0.weight",] == found["4.weight",] == reason
    model, example = cnn()
    model = randomise(model, 1)
    parametrize.register_parametrization(model[9], "weight", nn.Identity())
    found = {s.producers: s.refused for s in channel_spaces(model, example)}
    assert found["9.weight",] == reason.replace("4.", "9.") and found["0.weight",] is None


def test_untraceable_models_and_wrong_inputs():
    def body(net, x):
        return net.a(x) if x.sum() > 0 else x

    with pytest.raises(GshwError, match=r"^torch\.fx cannot follow the model \(TraceError: "):
        channel_spaces(Net(body, a=nn.Linear(3, 3)), torch.ones(2, 3))
    with pytest.raises(GshwError, match=r"^torch\.fx cannot follow the model \(RuntimeError: "):
        channel_spaces(nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 4))


def test_bad_permutations():
    model, example = cnn()
    spaces = channel_spaces(randomise(model, 1), example)
    first, second = spaces[0], spaces[1]
    message = "channels of the model's input must keep their order: they are the model's input "
    with pytest.raises(GshwError, match=f"^{re.escape(message)}'input_1'$"):
        apply_permutation(model, first, np.arange(3))
    message = "channels of 0.weight need a permutation of 8, not [0 1 2]"
    with pytest.raises(GshwError, match=f"^{re.escape(message)}$"):
        apply_permutation(model, second, np.arange(3))
