"""Calibration moments against plain loops over what each weight is multiplied with."""

import re
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from gshw.config import load_config
from gshw.errors import GshwError
from pruning.models.masking import set_mask
from pruning.models.weights import find_weights
from pruning.recovery import calibration
from pruning.recovery.calibration import Moments, collect_moments

TINY = load_config("tiny").engine


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


def moments_of(model: nn.Module, batches, example=None, **options) -> dict[str, Moments]:
    weights, _ = find_weights(TINY, model, example)
    return collect_moments(model, weights, batches, **options)


def gram_of(vectors) -> np.ndarray:
    rows = np.concatenate([v.detach().double().reshape(-1, v.shape[-1]).numpy() for v in vectors])
    return rows.T @ rows


def close(found, wanted) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


# --- linear layers and convolutions --------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4, 7)])
def test_linear_with_any_leading_axes(shape):
    batches = [torch.randn(shape) for _ in range(3)]
    found = moments_of(nn.Sequential(nn.Linear(7, 4)), batches)["0"]
    close(found.gram, gram_of(batches))
    assert found.n_samples == 3 * int(np.prod(shape[:-1]))
    assert found.gram.dtype == np.float64 and found.cross is None and found.reference is None
    assert found.n_columns == 7
    close(found.sums, sum(b.reshape(-1, 7).sum(0) for b in batches).numpy())
    np.testing.assert_allclose(found.means()[0], found.sums / found.n_samples)


CONVOLUTIONS = (
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 1, "stride": 2},
)


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("n_channels", [2, 5])
def test_convolution_windows(options, n_channels):
    """Windows cut out one by one, columns (kernel row, kernel column, channel)."""
    module = nn.Conv2d(n_channels, 3, **options)
    x = torch.randn(4, n_channels, 6, 7)
    weights, _ = find_weights(TINY, nn.Sequential(module))
    found = collect_moments(nn.Sequential(module), weights, x.split(3))["0"]
    geometry = weights[0].geometry
    (kh, kw), (sy, sx), (dy, dx) = geometry.kernel, geometry.stride, geometry.dilation
    py, px = geometry.padding
    padded = nn.functional.pad(x, (px, px, py, py)).permute(0, 2, 3, 1)
    height, width = module(x).shape[2:]
    windows = [
        torch.cat([padded[n, oy * sy + i * dy, ox * sx + j * dx] for i, j in taps])
        for n, oy, ox in product(range(4), range(height), range(width))
        for taps in [list(product(range(kh), range(kw)))]
    ]
    close(found.gram, gram_of([torch.stack(windows)]))
    assert found.n_samples == len(windows)


def output_energy(model: nn.Sequential, name: str, x: Tensor) -> float:
    seen = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, a, y: seen.append(y))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return float(seen[0].double().square().sum())


def test_columns_fit_the_matrix():
    """w G w^T is the energy of the output: for Conv1d, and behind a flatten (channels last)."""
    model = nn.Sequential(
        nn.Conv1d(3, 6, 3, stride=2, padding=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 4, bias=False),
    )
    x = torch.randn(8, 3, 10)
    weights, _ = find_weights(TINY, model, x)
    found = collect_moments(model, weights, [x])
    for weight in weights:
        matrix = weight.to_matrix(weight.dense).astype(np.float64)
        energy = np.trace(matrix @ found[weight.name].gram @ matrix.T)
        assert energy == pytest.approx(output_energy(model, weight.name, x), rel=1e-4)
    torch_order = gram_of([model[:3](x)])
    assert np.abs(found["3"].gram - torch_order).max() > 0.1 * np.abs(torch_order).max()


def test_large_inputs_are_unfolded_in_pieces(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 2, 3)), torch.randn(7, 3, 6, 6)
    whole = moments_of(model, [x])["0"]
    monkeypatch.setattr(calibration, "_CHUNK_ELEMENTS", 27 * 16 * 2)
    parts = moments_of(model, [x])["0"]
    assert parts.n_samples == whole.n_samples == 7 * 16
    close(parts.gram, whole.gram)


def test_unbatched_image():
    x = torch.randn(3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    close(moments_of(model, [x])["0"].gram, moments_of(model, [x[None]])["0"].gram)


def test_half_precision_is_summed_in_float():
    x = (100 * torch.rand(5000, 4)).bfloat16()
    found = moments_of(nn.Sequential(nn.Linear(4, 2).bfloat16()), [x])["0"]
    np.testing.assert_allclose(found.gram, gram_of([x]), rtol=1e-5)


def test_module_used_twice_and_batches_of_tuples():
    model = nn.Sequential(layer := nn.Linear(3, 3), nn.ReLU(), layer)
    x = torch.randn(6, 3)
    found = moments_of(model, [(x, "label"), [x, 0]])["0"]
    close(found.gram, 2 * gram_of([x, model[:2](x)]))
    assert found.n_samples == 24


def test_masked_models_are_seen_as_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(9, 3)
    set_mask(model[0], torch.rand(4, 3) < 0.5)
    close(moments_of(model, [x])["1"].gram, gram_of([model[0](x)]))


def test_diagonal_only():
    model, x = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 5)), None
    x = torch.randn(5, 2, 3, 3)
    whole = moments_of(model, [x, x], example=x)
    found = moments_of(model, [x, x], example=x, diagonal_only=["0", "2"])
    for name in ("0", "2"):
        assert found[name].gram is None
        close(found[name].squares, np.diagonal(whole[name].gram))
        close(found[name].diagonal, whole[name].diagonal)


# --- recurrent layers ----------------------------------------------------------------------------


def sequences_by_hand(module: nn.RNNBase, sequence: Tensor, state) -> dict[str, list[Tensor]]:
    """Vectors that each weight reads for one sequence (n_steps, n_features), step by step."""
    read: dict[str, list[Tensor]] = {}
    directions = ("", "_reverse") if module.bidirectional else ("",)
    for layer in range(module.num_layers):
        outputs = []
        for d, suffix in enumerate(directions):
            end = f"l{layer}{suffix}"
            p = {k: getattr(module, f"{k}_{end}", None) for k in ("weight_ih", "weight_hh")}
            bias = [getattr(module, f"bias_{k}_{end}", torch.zeros(())) for k in ("ih", "hh")]
            h, c = (s[layer * len(directions) + d] for s in state)
            states = []
            for x in sequence.flip(0) if d else sequence:
                read.setdefault(f"weight_ih_{end}", []).append(x)
                read.setdefault(f"weight_hh_{end}", []).append(h)
                a, b = p["weight_ih"] @ x + bias[0], p["weight_hh"] @ h + bias[1]
                if isinstance(module, nn.LSTM):
                    i, f, g, o = (a + b).chunk(4)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    if module.proj_size:
                        read.setdefault(f"weight_hr_{end}", []).append(h)
                        h = getattr(module, f"weight_hr_{end}") @ h
                elif isinstance(module, nn.GRU):
                    r = (a.chunk(3)[0] + b.chunk(3)[0]).sigmoid()
                    z = (a.chunk(3)[1] + b.chunk(3)[1]).sigmoid()
                    n = (a.chunk(3)[2] + r * b.chunk(3)[2]).tanh()
                    h = (1 - z) * n + z * h
                else:
                    h = (a + b).tanh() if module.nonlinearity == "tanh" else (a + b).relu()
                states.append(h)
            outputs.append(torch.stack(states[::-1] if d else states))
        sequence = torch.cat(outputs, dim=1)
    return read


RECURRENT = (
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}),
    (nn.LSTM, {"num_layers": 2, "proj_size": 2, "bias": False}),
    (nn.GRU, {"num_layers": 3, "bidirectional": True}),
    (nn.GRU, {"batch_first": True, "dropout": 0.5, "num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
)


class WithState(nn.Module):
    """Hands a recurrent layer its initial state, by keyword."""

    def __init__(self, layer: nn.RNNBase, state) -> None:
        super().__init__()
        self.layer, self.state = layer, state

    def forward(self, x):
        return self.layer(x, hx=self.state)[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("feed", ["batch", "packed", "single"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_recurrent_inputs(kind, options, with_state, feed):
    """h before each step, layer by layer and both ways; padding and other sequences apart."""
    layer = kind(4, 5, **options)
    n_sequences = 1 if feed == "single" else 3
    lengths = [4, 6, 2] if feed == "packed" else [6] * n_sequences
    sequences = [torch.randn(n, 4) for n in lengths]
    n_states = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or 5, 5)
    states = [torch.randn(n_states, n_sequences, n) * with_state for n in sizes]
    given = [s[:, 0] for s in states] if feed == "single" else states
    hx = tuple(given) if kind is nn.LSTM else given[0]
    x = sequences[0]
    if feed != "single":
        x = nn.utils.rnn.pad_sequence(sequences, batch_first=layer.batch_first)
    if feed == "packed":
        x = pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False)
    found = moments_of(WithState(layer, hx if with_state else None), [x])
    wanted: dict[str, list[Tensor]] = {}
    for i, sequence in enumerate(sequences):
        one = sequences_by_hand(layer.eval(), sequence, [s[:, i] for s in states])
        for name, vectors in one.items():
            wanted.setdefault(f"layer.{name}", []).extend(vectors)
    assert set(found) == set(wanted)
    for name, vectors in wanted.items():
        close(found[name].gram, gram_of([torch.stack(vectors)]))
        assert found[name].n_samples == sum(lengths)


# --- attention -----------------------------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, inputs):
        query, key, value = inputs
        return self.attention(query, value=value, key=key, need_weights=False)[0]


def heads_by_hand(module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Concatenated outputs of two heads of four, one sample (n_steps, 8)."""
    own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    packed = module.in_proj_weight
    wq, wk, wv = own if packed is None else packed.chunk(3)
    bq, bk, bv = module.in_proj_bias.chunk(3)
    q, k, v = q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        attention = (q[:, part] @ k[:, part].T / 2).softmax(dim=1)
        heads.append(attention @ v[:, part])
    return torch.cat(heads, dim=1)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", ["self", "cross", "other sizes"])
def test_attention(case, batch_first):
    options = {"kdim": 5, "vdim": 6} if case == "other sizes" else {}
    model = Attending(batch_first=batch_first, **options)
    nn.init.normal_(model.attention.in_proj_bias)
    q = torch.randn(3, 4, 8)
    k, v = q, q
    if case != "self":
        k, v = torch.randn(3, 7, options.get("kdim", 8)), torch.randn(3, 7, options.get("vdim", 8))
    inputs = [q, k, v]
    if not batch_first:
        turned = {id(t): t.transpose(0, 1) for t in inputs}
        inputs = [turned[id(t)] for t in inputs]
    found = moments_of(model, [(inputs,)])
    wanted = [gram_of([t]) for t in (q, k, v)]
    if case == "other sizes":
        for name, gram in zip("qkv", wanted, strict=True):
            close(found[f"attention.{name}_proj_weight"].gram, gram)
    elif case == "self":
        close(found["attention.in_proj_weight"].gram, wanted[0])
    else:
        moments = found["attention.in_proj_weight"]
        assert moments.gram.shape == (3, 8, 8) and moments.diagonal.shape == (3, 8)
        slices = list(moments.parts(24))
        assert [rows for rows, _ in slices] == [slice(0, 8), slice(8, 16), slice(16, 24)]
        for (_, part), gram in zip(slices, wanted, strict=True):
            close(part.gram, gram)
    heads = [heads_by_hand(model.attention, *(t[n] for t in (q, k, v))) for n in range(3)]
    close(found["attention.out_proj"].gram, gram_of(heads))


def test_attention_that_is_first_self_then_cross():
    model = Attending()
    x, y = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    found = moments_of(model, [((x, x, x),), ((x, y, y),), ((x, x, x),)])
    grams = found["attention.in_proj_weight"].gram
    for gram, last in zip(grams, (x, y, y), strict=True):
        close(gram, gram_of([x, last, x]))


def test_transformer_without_its_fused_kernel():
    """In evaluation mode the fused kernel calls no modules; moments must still come."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    before = torch.backends.mha.get_fastpath_enabled()
    found = moments_of(model, [x])
    assert torch.backends.mha.get_fastpath_enabled() is before is True
    wanted = {"self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"}
    assert set(found) == wanted
    with torch.no_grad():
        after = model.norm1(x + model.self_attn(x, x, x, need_weights=False)[0])
    close(found["linear1"].gram, gram_of([after]))


# --- beside a reference --------------------------------------------------------------------------


def test_reference_inputs():
    """X^T Y and Y^T Y, columns in the matrix's order on both sides."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(9, 2, 4, 4)
    found = moments_of(model, x.split(4), example=x, reference=other)["3"]
    order = find_weights(TINY, model, x)[0][1].index[0]
    mine, theirs = (m[:3](x).detach().double().numpy()[:, order] for m in (model, other))
    close(found.gram, mine.T @ mine)
    close(found.cross, mine.T @ theirs)
    close(found.reference, theirs.T @ theirs)
    mean, other_mean = mine.mean(axis=0), theirs.mean(axis=0)
    close(found.means()[0], mean)
    close(found.means()[1], other_mean)
    about = found.centred()
    close(about.gram, (mine - mean).T @ (mine - mean))
    close(about.cross, (mine - mean).T @ (theirs - other_mean))
    close(about.reference, (theirs - other_mean).T @ (theirs - other_mean))
    assert not about.sums.any() and not about.reference_sums.any()


def test_reference_of_a_cross_attention():
    model, other = Attending(), Attending()
    inputs = tuple(torch.randn(4, 2, 8) for _ in range(3))
    found = moments_of(model, [(inputs,)], reference=other)["attention.in_proj_weight"]
    assert found.cross.shape == (3, 8, 8)
    for (_, part), x in zip(found.parts(24), inputs, strict=True):
        close(part.cross, gram_of([x]))
        close(part.reference, gram_of([x]))
    for (_, part), x in zip(found.centred().parts(24), inputs, strict=True):
        close(part.cross, gram_of([x - x.mean((0, 1))]))


class Cut(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.fc = n, nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x[: self.n]) if self.n else x


@pytest.mark.parametrize(("n", "shape"), [(2, (2, 4)), (0, (0, 4))])
def test_reference_that_reads_something_else(n, shape):
    rule = "the reference model must read inputs of the same shape (3, 4)"
    with raises(f"layer 'fc': {rule}, not {shape}"):
        moments_of(Cut(3), [torch.randn(5, 4)], reference=Cut(n))


# --- the model is left as it was -----------------------------------------------------------------


def snapshot(model: nn.Module) -> list:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    state = [t.clone() for t in model.state_dict().values()]
    return [[(n, id(m), m.training) for n, m in model.named_modules()], hooks, state]


@pytest.mark.parametrize("good", [True, False])
def test_model_is_restored(good):
    model = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(5), nn.Dropout(0.5),
        nn.TransformerEncoderLayer(8, 2, 16), nn.LSTM(8, 4, 2),
    )  # fmt: skip
    model.train()
    model[2].eval()
    before = snapshot(model)
    x = torch.randn(3, 5, 8) * (1.0 if good else torch.nan)
    random = torch.get_rng_state()
    if good:
        moments_of(model, [x])
    else:
        with raises("layer '0': its calibration inputs must be finite"):
            moments_of(model, [x])
    after = snapshot(model)
    assert after[:2] == before[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_evaluation_mode_is_used():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 2)).train()
    x = torch.randn(50, 3)
    close(moments_of(model, [x])["1"].gram, gram_of([x]))


# --- errors --------------------------------------------------------------------------------------


def test_no_batches():
    with raises("calibration batches yield nothing"):
        moments_of(nn.Sequential(nn.Linear(3, 2)), iter(()))


def test_layer_that_is_never_reached():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    with raises("layer 'idle': no calibration batch reached it"):
        moments_of(Idle(), [torch.randn(4, 3)])


@pytest.mark.parametrize("diagonal_only", [(), ("0",)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite(bad, diagonal_only):
    x = torch.randn(4, 3)
    x[2, 1] = bad
    with raises("layer '0': its calibration inputs must be finite"):
        moments_of(nn.Sequential(nn.Linear(3, 2)), [x], diagonal_only=diagonal_only)


def test_unknown_name_for_the_diagonal():
    with raises("diagonal_only must name weights of the list, not 'fc'"):
        moments_of(nn.Sequential(nn.Linear(3, 2)), [torch.randn(4, 3)], diagonal_only=["fc"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_samples": 0, "gram": np.eye(2)}, "moments need at least one sample, not 0"),
        ({"n_samples": 1}, "moments need either a gram matrix or its diagonal"),
        (
            {"n_samples": 1, "gram": np.eye(2), "squares": np.ones(2)},
            "moments need either a gram matrix or its diagonal",
        ),
        ({"n_samples": 1, "gram": np.full((2, 2), np.nan)}, "moments must be finite"),
        ({"n_samples": 1, "squares": np.array([1, np.inf])}, "moments must be finite"),
        (
            {"n_samples": 1, "gram": np.eye(2), "cross": np.full((2, 2), np.inf)},
            "moments must be finite",
        ),
    ],
)
def test_moments_that_cannot_be(fields, message):
    with raises(message):
        Moments(**fields)


@pytest.mark.parametrize("fields", [{"squares": np.ones(2)}, {"gram": np.eye(2)}])
def test_moments_that_cannot_be_centred(fields):
    with raises("only moments with a gram matrix and sums can be centred"):
        Moments(n_samples=1, **fields).centred()
