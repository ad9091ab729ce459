"""The order of fewer groups, held against what the encoder makes."""

import numpy as np
import pytest

from gshw.encoding import Requantisation, encode_layer
from gshw.geometry import Geometry
from gshw.row_order import choose_row_order, groups_of_order
from tests.strategies import all_engines


@pytest.mark.parametrize("name", sorted(all_engines()))
def test_groups_are_the_encoders(name):
    engine = all_engines()[name]
    rng = np.random.default_rng(0)
    n_rows, n_columns = 3 * engine.rows + 1, 2 * engine.channels_per_row + 3
    geometry = Geometry.linear(n_columns)
    found = []
    # Like rows beside each other, and like rows far apart.
    for densities in (np.linspace(1, 0, n_rows), np.tile([0.9, 0.05], n_rows)[:n_rows]):
        kept = rng.random((n_rows, n_columns)) < densities[:, None]
        chosen = choose_row_order(engine, geometry, kept)
        counts = geometry.to_blocks(engine, kept).any(axis=3).sum(axis=1)
        groups = []
        for order in (np.arange(n_rows), np.argsort(-counts.sum(axis=1), kind="stable")):
            stage = Requantisation.identity(n_rows, engine)
            weights = kept.astype(np.int16)
            layer = encode_layer(engine, "x", weights, geometry, stage, mask=kept, row_order=order)
            if engine.gather.value == "scheduled":
                assert layer.n_groups == groups_of_order(engine, counts, order)
            groups.append(groups_of_order(engine, counts, order))
        assert groups_of_order(engine, counts, chosen) == min(groups)
        found.append(groups)
    assert engine.rows == 1 or found[1][1] < found[1][0]
