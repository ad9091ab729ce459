"""Activation tables against a naive look-up, at full rate."""

import dataclasses

import numpy as np
import pytest

from gshw.config import TABLE_WORD_CODES
from rtl_gen.activation import ActivationTables
from tests.rtl.bench import simulate
from tests.strategies import ENGINES


@pytest.mark.parametrize(("name", "n_tables"), [("tables4", 2), ("direct2x2", 1), ("direct2x2", 8)])
def test_codes_go_through_the_selected_table(name, n_tables):
    config = dataclasses.replace(ENGINES[name], activation_tables=n_tables)
    dut = ActivationTables(config)
    rng = np.random.default_rng(n_tables)
    width, n_codes = config.activation_width, config.drain_rows * config.columns
    n_entries = 1 << width
    tables = rng.integers(0, n_entries, (n_tables, n_entries))
    found: dict[int, list[list[int]]] = {}
    given = {}

    async def bench(ctx):
        ctx.set(dut.load.valid, 1)
        for address, word in enumerate(tables.reshape(-1, TABLE_WORD_CODES).tolist()):
            ctx.set(dut.load.payload.address, address)
            ctx.set(dut.load.payload.data, sum(code << width * n for n, code in enumerate(word)))
            await ctx.tick()
        ctx.set(dut.load.valid, 0)
        for select in range(n_tables + 1):
            ctx.set(dut.select, select)
            await ctx.tick().repeat(2)
            codes = rng.integers(0, n_entries, (40, n_codes))
            codes[0], codes[1] = 0, n_entries - 1
            given[select], found[select] = codes, []
            for cycle in range(40 + dut.latency):
                if cycle >= dut.latency:
                    found[select].append([ctx.get(code) for code in dut.o])
                for n in range(n_codes):
                    ctx.set(dut.i[n], int(codes[min(cycle, 39), n]))
                await ctx.tick()

    simulate(dut, bench)
    for select, codes in given.items():
        wanted = codes if select == 0 else tables[select - 1][codes]
        assert np.array_equal(found[select], wanted), select
