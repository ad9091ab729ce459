"""Registers in a row."""

from amaranth.hdl import Module, Signal, ValueCastable


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
