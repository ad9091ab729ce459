"""Registers in a row."""

from amaranth.hdl import Module, Signal, Value, ValueCastable


def delay(m: Module, value, n_cycles: int, name: str, *, resets: bool = False):
    """Return ``value`` as it was ``n_cycles`` ago (throughput one per cycle).

    Parameters
    ----------
    name
        Registers are called ``{name}_1`` .. ``{name}_{n_cycles}``.
    resets
        Whether the registers clear on reset; framing does, data does not.
    """
    for stage in range(1, n_cycles + 1):
        register = Signal(value.shape(), name=f"{name}_{stage}", reset_less=not resets)
        target = register.as_value() if isinstance(register, ValueCastable) else register
        source = value.as_value() if isinstance(value, ValueCastable) else value
        m.d.sync += target.eq(source)
        value = register
    return value


N_COPIES = 3
"""Registers that hold the same and stay apart in synthesis."""


def copied(m: Module, value: Value, name: str, number: int) -> Signal:
    """Return ``value`` a cycle ago, in a register for some of many multipliers far from each other.

    Synthesis merges registers that hold the same. These differ in what a reset makes of them, if
    ``number`` modulo ``N_COPIES`` differs.
    """
    kind = number % N_COPIES
    shape = value.shape()
    ones = -1 if shape.signed else (1 << shape.width) - 1
    register = Signal(shape, name=name, reset_less=kind == 0, init=ones if kind == 2 else 0)
    m.d.sync += register.eq(value)
    return register
