"""Which tensors of a model can be pruned, as matrices, and why the others cannot."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gshw.config import load_config
from gshw.errors import GshwError
from pruning.models.masking import set_mask, squash_masks, weight_mask
from pruning.models.weights import find_weights

TINY = load_config("tiny").engine
KINDS = "pruned are Linear, Conv1d, Conv2d, RNN, LSTM, GRU and MultiheadAttention"


def numbered(tensor: torch.Tensor) -> torch.Tensor:
    """Values that tell their own place."""
    return torch.arange(tensor.numel()).reshape(tensor.shape).float()


def shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    weights, _ = find_weights(TINY, model)
    return {weight.name: weight.shape for weight in weights}


def test_every_kind_of_weight():
    model = nn.ModuleDict(
        {
            "fc": nn.Linear(5, 3),
            "conv": nn.Conv2d(4, 6, (2, 3)),
            "wave": nn.Conv1d(4, 6, 3),
            "lstm": nn.LSTM(5, 6, num_layers=2, bidirectional=True, proj_size=2),
            "gru": nn.GRU(5, 6, bias=False),
            "rnn": nn.RNN(5, 6),
            "packed": nn.MultiheadAttention(8, 2),
            "separate": nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        }
    )
    lstm = {
        f"lstm.weight_{kind}_l{layer}{direction}": shape
        for layer in (0, 1)
        for direction in ("", "_reverse")
        for kind, shape in (
            ("ih", (24, 5 if layer == 0 else 4)),
            ("hh", (24, 2)),
            ("hr", (2, 6)),
        )
    }
    assert shapes(model) == {
        "fc": (3, 5),
        "conv": (6, 24),
        "wave": (6, 12),
        **lstm,
        "gru.weight_ih_l0": (18, 5),
        "gru.weight_hh_l0": (18, 6),
        "rnn.weight_ih_l0": (6, 5),
        "rnn.weight_hh_l0": (6, 6),
        "packed.in_proj_weight": (24, 8),
        "packed.out_proj": (8, 8),
        "separate.q_proj_weight": (8, 8),
        "separate.k_proj_weight": (8, 6),
        "separate.v_proj_weight": (8, 4),
        "separate.out_proj": (8, 8),
    }


def test_a_model_that_is_one_layer():
    assert shapes(nn.Linear(5, 3)) == {"weight": (3, 5)}
    assert list(shapes(nn.GRU(5, 6))) == ["weight_ih_l0", "weight_hh_l0"]


def test_matrix_of_a_convolution_is_channel_last():
    model = nn.Sequential(nn.Conv2d(4, 6, (2, 3)))
    (weight,), _ = find_weights(TINY, model)
    values = numbered(weight.dense)
    matrix = weight.to_matrix(values)
    for row, y, x, channel in [(0, 0, 0, 3), (5, 1, 2, 0), (2, 0, 1, 1)]:
        assert matrix[row, (y * 3 + x) * 4 + channel] == values[row, channel, y, x]
    assert torch.equal(weight.from_matrix(matrix), values)
    assert weight.from_matrix(matrix > 7).dtype == torch.bool


def test_linear_behind_a_flatten_reads_channels_last():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(24, 3))
    weights, _ = find_weights(TINY, model, torch.zeros(1, 2, 2, 3))
    values = numbered(weights[1].dense)
    matrix = weights[1].to_matrix(values)
    assert matrix[1, (1 * 3 + 2) * 4 + 3] == values[1, 3 * 6 + 1 * 3 + 2]
    plain, _ = find_weights(TINY, model)
    assert np.array_equal(plain[1].to_matrix(values), values.numpy())


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
        (torch.float64, np.float64),
        (torch.bool, np.bool_),
        (torch.int64, np.int64),
    ],
)
def test_matrix_of_other_precisions(dtype, wanted):
    """What NumPy lacks, or cannot sum, becomes float32; a mask stays a mask."""
    model = nn.Linear(3, 2)
    (weight,), _ = find_weights(TINY, model)
    values = torch.tensor([[1.5, 0, 2], [0, 0, 3]]).to(dtype)
    matrix = weight.to_matrix(values)
    assert matrix.dtype == wanted
    assert np.array_equal(matrix, values.double().numpy().astype(wanted))


def test_masked_model_is_found_again():
    """The same weights and order, dense below the mask; also after a squash."""
    model = nn.ModuleDict({"fc": nn.Linear(5, 3), "lstm": nn.LSTM(5, 6)})
    model["attention"] = nn.MultiheadAttention(8, 2)
    before = shapes(model)
    weights, _ = find_weights(TINY, model)
    parameters = [id(weight.dense) for weight in weights]
    for weight in weights:
        set_mask(weight.module, torch.zeros(weight.dense.shape), weight.tensor_name)
    again, skipped = find_weights(TINY, copy.deepcopy(model))
    assert {weight.name: weight.shape for weight in again} == before and not skipped
    assert all(weight.dense.any() and not weight.masked.any() for weight in again)
    assert [id(weight.dense) for weight in find_weights(TINY, model)[0]] == parameters
    squash_masks(model)
    assert shapes(model) == before


def test_masked_flatten_is_still_traced():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(24, 3))
    example = torch.zeros(1, 2, 2, 3)
    weights, _ = find_weights(TINY, model, example)
    for weight in weights:
        set_mask(weight.module, torch.ones(weight.dense.shape), weight.tensor_name)
    again, _ = find_weights(TINY, model, example)
    assert all(np.array_equal(a.index, b.index) for a, b in zip(weights, again, strict=True))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 4))


def with_old_weight_norm() -> nn.Module:
    layer = nn.Linear(3, 3)
    return torch.nn.utils.weight_norm(layer)


def integer() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Embedding(7, 3), f"of type Embedding; {KINDS}"),
        (lambda: nn.ConvTranspose2d(2, 2, 3), f"of type ConvTranspose2d; {KINDS}"),
        (lambda: nn.Conv3d(2, 2, 3), f"of type Conv3d; {KINDS}"),
        (lambda: nn.Bilinear(2, 2, 3), f"of type Bilinear; {KINDS}"),
        (lambda: nn.LSTMCell(2, 2), f"of type LSTMCell; {KINDS}"),
        (Own, f"of type Own; {KINDS}"),
        (
            lambda: nn.Conv2d(4, 4, 3, groups=2),
            "a convolution of 2 groups; the engine runs groups = 1",
        ),
        (
            lambda: nn.Conv1d(4, 4, 3, padding_mode="circular", padding=1),
            "padding_mode 'circular'; the engine pads with zeros",
        ),
        (
            lambda: nn.Conv1d(4, 4, 2, padding="same"),
            "padding 'same' must be symmetric (odd kernels)",
        ),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            "parametrised by _WeightNorm already; pruned are plain weights",
        ),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
            "parametrised by _SpectralNorm already; pruned are plain weights",
        ),
        (with_old_weight_norm, "its weight is computed by a hook; pruned are plain weights"),
        (lambda: nn.LazyLinear(3), "its weight has no shape until the model has run once"),
        (
            lambda: nn.Linear(3, 3, device="meta"),
            "its weight is on the meta device and has no values",
        ),
        (integer, "its weight is int8; pruned are real weights"),
    ],
)
def test_skipped_with_a_reason(make, reason):
    weights, skipped = find_weights(TINY, nn.Sequential(nn.Linear(3, 3), make()))
    assert [weight.name for weight in weights] == ["0"]
    assert skipped == {"1": reason}


def test_norms_and_biases_need_no_reason():
    norms = [nn.BatchNorm2d(3), nn.LayerNorm((3, 3)), nn.GroupNorm(1, 3), nn.PReLU()]
    _, skipped = find_weights(TINY, nn.Sequential(nn.Linear(3, 3), *norms, nn.ReLU()))
    assert skipped == {}


def test_a_weight_shared_by_two_modules_is_skipped():
    """The usual tie of a language model, between two layers, and found through a mask too."""
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(7, 3),
            "a": nn.Linear(3, 3),
            "b": nn.Linear(3, 3),
            "decoder": nn.Linear(3, 7),
            "free": nn.Linear(3, 3),
        }
    )
    model["decoder"].weight = model["embedding"].weight
    model["b"].weight = model["a"].weight
    for masked in (False, True):
        if masked:
            set_mask(model["a"], torch.ones(3, 3))
        weights, skipped = find_weights(TINY, model)
        assert [weight.name for weight in weights] == ["free"]
        assert skipped == {
            "embedding": f"of type Embedding; {KINDS}",
            "a": "one weight under several names: a.weight, b.weight",
            "b": "one weight under several names: a.weight, b.weight",
            "decoder": "one weight under several names: embedding.weight, decoder.weight",
        }


def test_a_module_used_twice_is_pruned_once():
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": layer, "b": layer})
    weights, skipped = find_weights(TINY, model)
    assert ([weight.name for weight in weights], skipped) == (["a"], {})
    set_mask(layer, torch.zeros(3, 3))
    assert weight_mask(model["b"]) is weight_mask(layer)


def test_nothing_to_prune():
    with pytest.raises(GshwError, match=r"^the model has no weight to prune$"):
        find_weights(TINY, nn.Sequential(nn.ReLU()))
    message = rf"^the model has no weight to prune \(0: of type Embedding; {KINDS}\)$"
    with pytest.raises(GshwError, match=message):
        find_weights(TINY, nn.Sequential(nn.Embedding(4, 4)))
