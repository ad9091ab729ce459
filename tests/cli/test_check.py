"""``gshw check``: a mask against a config, and masks that are none."""

import numpy as np
import pytest

from tests.cli.conftest import save_array


def balanced_mask() -> np.ndarray:
    """Three groups of row 0 and one of row 2, four banks each."""
    mask = np.zeros((3, 16), dtype=bool)
    mask[0, :12] = mask[2, 4:8] = True
    return mask


def test_check_matching(run, tmp_path):
    path = save_array(tmp_path / "mask.npy", balanced_mask())
    result = run("check", path, "--config", "tiny")
    assert (result.status, result.err) == (0, "")
    assert result.out == f"{path}: matches GS(4, 4), density 33.33 %\n"


def test_check_with_row_order(run, refused, tmp_path):
    """Rows 0 and 16 share a bundle only in the given order."""
    mask = np.zeros((32, 32), dtype=bool)
    order = np.arange(32).reshape(2, 16).T.reshape(-1)
    mask[order[:16], np.arange(16)] = True
    path = save_array(tmp_path / "mask.npy", mask)
    rows = save_array(tmp_path / "rows.npy", order)
    assert run("check", path, "--config", "v16x4", "--rows", rows).status == 0
    line = refused("check", path, "--config", "v16x4")
    assert line.startswith(f"{path} does not match GS(16, 1), 16 rows per bundle: bundle 0: row ")


def test_check_not_matching(refused, tmp_path):
    mask = balanced_mask()
    mask[2, 4], mask[2, 5 + 8] = False, True
    path = save_array(tmp_path / "mask.npy", mask)
    assert refused("check", path, "--config", "tiny") == (
        f"{path} does not match GS(4, 4), 1 rows per bundle: "
        "bundle 2: bank 0 keeps 0 blocks, not 1 (and 1 more)"
    )


def test_check_of_a_cut_block(refused, tmp_path):
    mask = np.zeros((16, 128), dtype=bool)
    mask[3, 5] = True
    path = save_array(tmp_path / "mask.npy", mask)
    assert refused("check", path, "--config", "block16") == (
        "mask must keep whole blocks of 4 channels, but keeps a part of the block at row 3, "
        "word 0, bank 1"
    )


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((2, 4)), "float64 of shape (2, 4)"),
        (np.zeros((2, 4, 1), dtype=bool), "bool of shape (2, 4, 1)"),
    ],
)
def test_check_of_another_array(refused, tmp_path, array, what):
    path = save_array(tmp_path / "mask.npy", array)
    assert refused("check", path, "--config", "tiny") == (
        f"{path}: must hold a two-dimensional bool array, not {what}"
    )


@pytest.mark.parametrize(
    "order",
    [[0, 0, 0], [0, 1], [0, 1, 3], [0.0, 1.0, 2.0]],
    ids=["twice", "few", "beyond", "float"],
)
def test_check_with_a_bad_row_order(refused, tmp_path, order):
    path = save_array(tmp_path / "mask.npy", balanced_mask())
    rows = save_array(tmp_path / "rows.npy", np.array(order))
    assert "row order" in refused("check", path, "--config", "tiny", "--rows", rows)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_check_of_an_empty_mask(refused, tmp_path):
    path = save_array(tmp_path / "mask.npy", np.zeros((0, 8), dtype=bool))
    assert "mask" in refused("check", path, "--config", "tiny")


def test_arrays_that_cannot_be_read(refused, tmp_path):
    path = tmp_path / "mask.npy"
    assert refused("check", path, "--config", "tiny") == f"{path}: no such file"
    whole = save_array(path, balanced_mask()).read_bytes()
    for data in (b"", b"text", whole[:40], whole[:-3]):
        path.write_bytes(data)
        line = refused("check", path, "--config", "tiny")
        assert line.startswith(f"{path}: not a whole .npy file: ")
    np.save(path, np.array([object()]), allow_pickle=True)
    line = refused("check", path, "--config", "tiny")
    assert line.startswith(f"{path}: not a whole .npy file: ")


def test_check_of_a_convolution(run, refused, tmp_path):
    """Six channels pad to eight: a tap's first channel falls on bank 0 again."""
    mask = np.zeros((1, 18), dtype=bool)
    mask[0, [0, 7, 14, 3]] = True  # (tap, channel) (0, 0), (1, 1), (2, 2), (0, 3): banks 0..3
    path = save_array(tmp_path / "mask.npy", mask)
    assert run("check", path, "--config", "tiny", "--channels", "6").status == 0
    assert "does not match" in refused("check", path, "--config", "tiny")
    assert refused("check", path, "--config", "tiny", "--channels", "7") == (
        "--channels must divide the mask's 18 columns (taps x channels), not 7"
    )
