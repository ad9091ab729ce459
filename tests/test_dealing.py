"""Dealing: permutations that are fair to the banks, and what they gain.

The gain is measured by the exact projection, which knows nothing of dealing; objectives are
recounted here by loops over what the engine's geometry says about banks.
"""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gshw.config import EngineConfig
from gshw.errors import GshwError
from gshw.geometry import Geometry, LayerKind
from pruning.channels import banks
from pruning.channels.dealing import Reader, deal_columns, deal_network
from pruning.models.masking import set_mask
from pruning.models.weights import find_weights
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import RowGrouping, ScoredMatrix
from tests.strategies import conv

torch.set_num_threads(1)


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def engine(lanes: int, rows: int, block: int = 1) -> EngineConfig:
    return EngineConfig(lanes=lanes, rows=rows, bank_width=8 * block)


def gaussian(rng, shape):
    return np.abs(rng.normal(size=shape))


def heavy(rng, shape):
    """Student's t with 4 degrees of freedom, rows and columns of log-normal scale (sigma 0.5)."""
    rows, columns = rng.normal(size=(shape[0], 1)), rng.normal(size=(1, shape[1]))
    return np.abs(rng.standard_t(4, shape)) * np.exp((rows + columns) / 2)


def reader(scores, geometry: Geometry | None = None, sparsity=0.9, channel=None) -> Reader:
    geometry = geometry or Geometry.linear(scores.shape[1])
    matrix = ScoredMatrix(name="fc", scores=scores, geometry=geometry)
    return Reader(matrix=matrix, sparsity=sparsity, channel=channel)


def permuted(scores, geometry: Geometry, order):
    by_tap = scores.reshape(len(scores), -1, geometry.in_channels)
    return by_tap[:, :, order].reshape(scores.shape)


def kept_share(config, scores, geometry, sparsity=0.9) -> float:
    """Kept score relative to unstructured, in percent."""
    matrix = ScoredMatrix(name="fc", scores=scores, geometry=geometry)
    mask = Gs(config=config).project(matrix, sparsity).mask
    best = np.sort(scores.reshape(-1))[-round(scores.size * (1 - sparsity)) :].sum()
    return 100 * scores[mask].sum() / best


def loads(config, scores, geometry, order, n_kept) -> np.ndarray:
    """Scores above the threshold by (consecutive bundle, bank), one by one."""
    threshold = np.sort(scores.reshape(-1))[-n_kept]
    count = np.zeros((-(-len(scores) // config.rows), config.lanes))
    moved = permuted(scores, geometry, order)
    for row, column in np.argwhere(moved >= threshold):
        channel = column % geometry.in_channels
        count[row // config.rows, channel // config.block % config.lanes] += 1
    return count


# --- deal_columns --------------------------------------------------------------------------------

ENGINES = [(16, 16, 1), (16, 4, 1), (16, 1, 1), (8, 8, 2), (16, 1, 4), (4, 2, 8)]


@pytest.mark.parametrize(("lanes", "rows", "block"), ENGINES)
@pytest.mark.parametrize("shape", [(64, 96), (70, 100), (33, 37)])
def test_order_is_a_permutation_and_deterministic(lanes, rows, block, shape):
    config = engine(lanes, rows, block)
    scores = heavy(np.random.default_rng(1), shape)
    for grouping in RowGrouping:
        order = deal_columns(config, [reader(scores)], grouping)
        assert np.array_equal(np.sort(order), np.arange(shape[1]))
        assert np.array_equal(order, deal_columns(config, [reader(scores.copy())], grouping))


@pytest.mark.parametrize(("lanes", "rows", "block"), ENGINES)
@pytest.mark.parametrize("seed", [1, 2])
def test_heavy_weights_never_keep_less(lanes, rows, block, seed):
    config = engine(lanes, rows, block)
    for shape in ((128, 128), (96, 200)):
        scores = heavy(np.random.default_rng(seed), shape)
        geometry = Geometry.linear(shape[1])
        for sparsity in (0.75, 0.9):
            order = deal_columns(config, [reader(scores, sparsity=sparsity)])
            before = kept_share(config, scores, geometry, sparsity)
            after = kept_share(config, permuted(scores, geometry, order), geometry, sparsity)
            assert after > before, (shape, sparsity)


@pytest.mark.parametrize(
    ("make", "lanes", "rows", "block", "least"),
    [
        # Measured: 1.65, 1.13, 0.81, 1.23, 0.57, 0.18; with blocks of four 11.29 and 10.46.
        (heavy, 16, 1, 1, 1.5),
        (heavy, 16, 4, 1, 1.0),
        (heavy, 16, 16, 1, 0.7),
        (gaussian, 16, 1, 1, 1.1),
        (gaussian, 16, 4, 1, 0.5),
        (gaussian, 16, 16, 1, 0.15),
        (heavy, 16, 16, 4, 10.8),
        (heavy, 16, 1, 4, 10.2),
    ],
)
def test_gain(make, lanes, rows, block, least):
    config = engine(lanes, rows, block)
    scores, geometry = make(np.random.default_rng(1), (512, 512)), Geometry.linear(512)
    order = deal_columns(config, [reader(scores)])
    before = kept_share(config, scores, geometry)
    assert kept_share(config, permuted(scores, geometry, order), geometry) > before + least


def test_target_of_dealt_columns():
    """The goal: heavy, GS(16, 1) scatter with columns dealt, 2048 x 512, at least 0.996."""
    scores = heavy(np.random.default_rng(0), (2048, 512))
    geometry = Geometry.linear(512)
    order = deal_columns(engine(16, 16), [reader(scores)])
    assert kept_share(engine(16, 16), permuted(scores, geometry, order), geometry) > 99.6


def test_convolution_moves_whole_channels():
    config, geometry = engine(8, 1), conv(40, (3, 3))
    scores = heavy(np.random.default_rng(3), (24, 360))
    order = deal_columns(config, [reader(scores, geometry)])
    assert order.shape == (40,)
    assert np.array_equal(np.sort(order), np.arange(40))
    before, after = (
        np.square(loads(config, scores, geometry, o, 864)).sum() for o in (np.arange(40), order)
    )
    assert after < 0.97 * before
    moved = permuted(scores, geometry, order)
    assert kept_share(config, moved, geometry) > kept_share(config, scores, geometry) + 0.5


def test_no_swap_of_two_channels_is_left_that_helps():
    """Consecutive bundles, where the objective can be recounted from outside."""
    for rows, n in ((1, 24), (4, 22)):
        config, geometry = engine(4, rows), Geometry.linear(n)
        scores = heavy(np.random.default_rng(5), (16, n))
        order = deal_columns(config, [reader(scores, sparsity=0.5)], RowGrouping.CONSECUTIVE)

        def squares(o, config=config, scores=scores, geometry=geometry, n=n):
            return np.square(loads(config, scores, geometry, o, 8 * n)).sum()

        best = squares(order)
        assert best < squares(np.arange(n))
        for i in range(n):
            for j in range(i):
                other = order.copy()
                other[[i, j]] = other[[j, i]]
                assert squares(other) >= best


def test_more_channels_than_one_gram_matrix():
    config, geometry = engine(16, 1), Geometry.linear(2100)
    scores = heavy(np.random.default_rng(6), (32, 2100))
    order = deal_columns(config, [reader(scores)])
    assert np.array_equal(np.sort(order), np.arange(2100))
    moved = permuted(scores, geometry, order)
    assert kept_share(config, moved, geometry) > kept_share(config, scores, geometry) + 0.2
    blocks = engine(16, 16, 2)
    order = deal_columns(blocks, [reader(scores)])
    moved = permuted(scores, geometry, order)
    assert kept_share(blocks, moved, geometry) > kept_share(blocks, scores, geometry) + 5


def test_readers_share_one_order():
    """A compromise: each gains, and neither as much as alone."""
    config, geometry = engine(16, 1), Geometry.linear(128)
    rng = np.random.default_rng(7)
    first, second = heavy(rng, (96, 128)), heavy(rng, (96, 128))
    shared = deal_columns(config, [reader(first), reader(second)])
    alone = deal_columns(config, [reader(first)])
    assert not np.array_equal(shared, alone)

    def kept(scores, order):
        return kept_share(config, permuted(scores, geometry, order), geometry)

    plain = np.arange(128)
    assert kept(first, plain) < kept(first, shared) < kept(first, alone)
    assert kept(second, plain) < kept(second, shared)
    assert kept(second, alone) < kept(second, shared)


def test_fixed_columns_are_dealt_around():
    """Columns that stay fill bank 1; the dealt ones, which start at bank 2, leave it to them."""
    config = engine(4, 4)
    scores = np.zeros((4, 34))
    scores[:, 1:18:4] = 1.0
    scores[:, [18, 19, 20, 22, 23, 24, 26, 27, 28, 30, 31, 32]] = 1.0
    channel = np.concatenate([np.full(18, -1), np.arange(16)])
    order = deal_columns(config, [reader(scores, sparsity=0.5, channel=channel)])
    scores[:, 18:] = scores[:, 18:][:, order]
    assert [scores[:, bank:18:4].sum() for bank in range(4)] == [0, 20, 0, 0]
    assert [scores[:, 18:][:, (bank + 2) % 4 :: 4].sum() for bank in range(4)] == [16, 0, 16, 16]


def test_pixels_that_start_at_different_banks_are_told_apart():
    """6 channels, 2 flattened pixels, 4 banks: pixel 1 starts at bank 2.

    Counted by channel alone the present order looks even: channels 0, 4 of one pixel and 1, 5 of
    the other. Their banks hold 3, 1, 1 and 3 weights.
    """
    scores = np.array([[1.0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 1]])
    channel = np.arange(12) % 6
    order = deal_columns(engine(4, 1), [reader(scores, channel=channel, sparsity=1 / 3)])
    moved = scores.reshape(2, 6)[:, order].reshape(3, 4)
    assert np.array_equal(scores.reshape(3, 4).sum(axis=0), [3, 1, 1, 3])
    assert np.array_equal(moved.sum(axis=0), [2, 2, 2, 2])


def test_snake_order_helps_by_itself(monkeypatch):
    monkeypatch.setattr(banks, "_N_SWEEPS", 0)
    config, geometry = engine(16, 4), Geometry.linear(256)
    scores = heavy(np.random.default_rng(8), (256, 256))
    order = deal_columns(config, [reader(scores)])
    moved = permuted(scores, geometry, order)
    assert kept_share(config, moved, geometry) > kept_share(config, scores, geometry) + 0.2


def test_channels_that_start_inside_a_block_keep_their_banks():
    config = engine(4, 1, 2)
    channel = np.concatenate([[-1], np.arange(16), [-1]])
    scores = heavy(np.random.default_rng(9), (8, 18))
    order = deal_columns(config, [reader(scores, channel=channel)])
    # Which channels are near each other can still be chosen.
    assert np.array_equal(np.sort(order), np.arange(16))


def test_nothing_to_gain_keeps_the_order():
    config = engine(8, 4)
    for scores in (np.ones((8, 40)), np.zeros((8, 40)), heavy(np.random.default_rng(1), (8, 8))):
        assert np.array_equal(deal_columns(config, [reader(scores)]), np.arange(scores.shape[1]))


def test_scores_with_few_positive_values():
    scores = np.zeros((16, 64))
    scores[:, ::4] = 1.0
    order = deal_columns(engine(4, 1, 2), [reader(scores, sparsity=0.25)])
    # All that is worth anything shares blocks.
    pairs = scores[:, order].reshape(16, 32, 2)
    assert (pairs.min(axis=2) == pairs.max(axis=2)).all()


def test_bad_readers():
    scores = np.ones((4, 18))
    unfolded = Geometry(kind=LayerKind.CONV2D, in_channels=2, kernel=(3, 3), unfold=True)
    with raises(
        "layer 'fc': unfolded: its columns are (tap, channel) pairs that the driver lays out, "
        "so the order of its input channels decides no bank"
    ):
        reader(scores, unfolded)
    with raises("dealing needs readers of one number of channels, not of [9, 18]"):
        deal_columns(engine(4, 4), [reader(scores), reader(scores, channel=np.arange(18) % 9)])
    with raises("dealing needs readers of one number of channels, not of []"):
        deal_columns(engine(4, 4), [])
    with raises("sparsity must be at least 0 and below 1, not 1"):
        reader(scores, sparsity=1.0)
    for channel in (np.array([0, 1]), np.full(18, -1), np.arange(18) // 4):
        with raises(
            "layer 'fc': channel must say for each of 18 columns which dealt channel it holds, "
            f"each as often, not {channel}"
        ):
            reader(scores, channel=channel)


# --- deal_network --------------------------------------------------------------------------------


class DenseBlock(nn.Module):
    """A stem that is unfolded, concatenation, a residual, a flatten, an unpruned head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.grow = nn.Conv2d(32, 16, 3, padding=1)
        self.mix = nn.Conv2d(48, 32, 1)
        self.pair = nn.Conv2d(16, 8, 1, groups=2)
        self.features = nn.Linear(32 * 9, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = torch.cat([x, F.relu(self.grow(x))], 1)
        x = F.max_pool2d(x + self.mix(y), 2)
        return self.head(F.relu(self.features(torch.flatten(x, 1))))


def heavy_model(model: nn.Module, seed: int) -> nn.Module:
    generator = np.random.default_rng(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d):
            shape = tuple(module.weight.shape)
            scale = heavy(generator, (shape[0], shape[1]))
            scale = scale.reshape(*shape[:2], *[1] * (len(shape) - 2))
            values = scale * generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
            module.weight.data = torch.from_numpy(values)
    return model.double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def total_share(config, model, example, names) -> dict[str, float]:
    weights, _ = find_weights(config, model, example)
    shares = {}
    for weight in weights:
        if weight.name in names:
            scores = np.abs(weight.to_matrix(weight.dense))
            shares[weight.name] = kept_share(config, scores, weight.geometry, 0.75)
    return shares


@pytest.mark.parametrize(("lanes", "rows", "block"), [(8, 1, 1), (8, 4, 1), (8, 2, 2)])
def test_network_computes_the_same_and_keeps_more(lanes, rows, block):
    config, example = engine(lanes, rows, block), images(2, 1, 6, 6)
    model = heavy_model(DenseBlock(), 1)
    names = ["grow", "mix", "features", "head"]
    before = total_share(config, model, example, names)
    with torch.no_grad():
        expected = model(example)
        weights = {name: getattr(model, name).weight.clone() for name in names}
        done = deal_network(config, model, example, None, 0.75)
        torch.testing.assert_close(model(example), expected, rtol=1e-10, atol=1e-10)
    assert list(done.dealt) == names
    assert done.refused == {
        "stem": "its input channels keep their order: they are the model's input 'x'"
    }
    after = total_share(config, model, example, names)
    assert sum(after.values()) > sum(before.values()) + 1
    assert sum(after[name] > before[name] for name in names) >= 3
    # What is reported is what was done: column norms follow, whatever happened to the rows.
    for name, order in done.dealt.items():
        norms = [
            w.transpose(0, 1).flatten(1).norm(dim=1)
            for w in (weights[name], getattr(model, name).weight)
        ]
        torch.testing.assert_close(norms[1], norms[0][order])
    # The concatenation's parts stay parts.
    assert set(done.dealt["mix"][:32]) == set(range(32))


def test_unfolded_and_unpruned_layers_follow_without_a_say():
    config, example = engine(16, 4), images(2, 1, 6, 6)

    layers = [nn.Conv2d(1, 4, 1), nn.Conv2d(4, 20, 3), nn.Flatten(), nn.Linear(320, 8)]
    model = heavy_model(nn.Sequential(*layers), 2)
    before = copy.deepcopy(model)
    weights, _ = find_weights(config, model, example)
    assert [w.geometry.unfold for w in weights] == [False, True, False]
    done = deal_network(config, model, example, None, {"0": 0.5, "1": 0.5})
    assert done.dealt == {}
    assert done.refused == {
        "0": "its input channels keep their order: they are the model's input 'input_1'",
        "1": "unfolded: its columns are (tap, channel) pairs that the driver lays out, "
        "so the order of its input channels decides no bank",
        "3": "it is not pruned",
    }
    for mine, other in zip(model.parameters(), before.parameters()):
        assert torch.equal(mine, other)
    assert list(deal_network(config, model, example, None, 0.5).dealt) == ["3"]


def test_scores_given_decide():
    config, example = engine(8, 1), images(2, 32)
    rng = np.random.default_rng(3)

    def make():
        return heavy_model(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), 3)

    scores = heavy(rng, (32, 64))
    one, other = make(), make()
    given = deal_network(config, one, example, {"2": scores}, 0.75).dealt["2"]
    magnitude = deal_network(config, other, example, None, 0.75).dealt["2"]
    assert np.array_equal(given, deal_columns(config, [reader(scores, sparsity=0.75)]))
    assert not np.array_equal(given, magnitude)
    with raises("layer '2': scores must have shape (32, 64), not (64, 32)"):
        deal_network(config, make(), example, {"2": scores.T}, 0.75)


def test_models_that_cannot_be_followed_are_left_alone():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else x

    model = heavy_model(Branching(), 1)
    before = [p.clone() for p in model.parameters()]
    done = deal_network(engine(4, 4), model, images(2, 8), None, 0.5)
    assert done.dealt == {} and list(done.refused) == ["a", "b"]
    assert done.refused["a"].startswith("torch.fx cannot follow the model (TraceError: ")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_attention_and_masked_weights_are_refused():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.attend = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.b(self.attend(x, x, x)[0] + self.a(x))

    keep = "its input channels keep their order: "
    done = deal_network(engine(4, 4), Attending().double(), images(2, 2, 8), None, 0.5)
    attention = "they pass 'attend' (MultiheadAttention), which may mix them"
    assert done.refused == {
        "a": keep + "they are the model's input 'x'",
        "b": keep + attention,
        "attend.in_proj_weight": keep + "torch.fx does not show what it reads",
        "attend.out_proj": keep + "torch.fx does not show what it reads",
    }
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)).double()
    set_mask(model[2], torch.ones(8, 8, dtype=torch.bool))
    done = deal_network(engine(4, 4), model, images(2, 8), None, 0.5)
    assert list(done.dealt) == ["1"]
    assert done.refused["2"] == (
        keep + "they are held by '2.weight', which is masked or parametrised"
    )


def test_language_model_is_dealt():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 16)
            self.lstm = nn.LSTM(16, 24, 2, batch_first=True)
            self.decode = nn.Linear(24, 11)

        def forward(self, x):
            return self.decode(self.lstm(self.embed(x))[0])

    torch.manual_seed(1)
    model = Language().double().eval()
    example = torch.randint(0, 11, (2, 5))
    with torch.no_grad():
        expected = model(example)
        done = deal_network(engine(8, 2), model, example, None, 0.75)
        torch.testing.assert_close(model(example), expected, rtol=1e-10, atol=1e-10)
    names = [f"lstm.weight_{kind}_l{layer}" for layer in (0, 1) for kind in ("ih", "hh")]
    assert sorted(done.dealt) == sorted([*names, "decode"]) and done.refused == {}
    # Both layers' states, and all who read them, have one order each.
    assert np.array_equal(done.dealt["lstm.weight_hh_l0"], done.dealt["lstm.weight_ih_l1"])
    assert np.array_equal(done.dealt["lstm.weight_hh_l1"], done.dealt["decode"])


def test_consecutive_bundles_are_those_of_the_dealt_rows():
    """Dealing a map moves its producer's rows, which must not spoil that layer's own dealing."""
    config, example = engine(4, 4), images(2, 24)
    layers = [nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)]
    model = heavy_model(nn.Sequential(*layers), 4)
    done = deal_network(config, model, example, None, 0.75, RowGrouping.CONSECUTIVE)
    assert list(done.dealt) == ["1", "2", "3"]
    for weight in find_weights(config, model, example)[0][1:]:
        scores = np.abs(weight.to_matrix(weight.dense))
        again = deal_columns(config, [reader(scores, sparsity=0.75)], RowGrouping.CONSECUTIVE)
        assert np.array_equal(again, np.arange(24))
