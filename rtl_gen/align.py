"""Moving bytes between lanes of a beat: the funnel of both movers, and write strobes."""

from amaranth.hdl import Cat, Module, Signal, Value


def funnel(m: Module, low: Value, high: Value, skip: Value, name: str) -> Signal:
    """One beat out of two neighbours: ``high`` after ``low``, less the first ``skip + 1`` bytes.

    Combinational; one level of two-way multiplexers per bit of ``skip``, the longest step first,
    as that needs the fewest multiplexers.

    Parameters
    ----------
    low
        The earlier beat without its byte 0, which no ``skip`` can reach: ``n_bytes - 1`` bytes.
    high
        The later beat: ``n_bytes`` bytes, a power of two.
    skip
        ``log2(n_bytes)`` bits. All ones gives ``high`` itself.
    name
        Of the intermediate signals.
    """
    n_bytes = len(high) // 8
    value = Cat(low, high)
    for stage in reversed(range(len(skip))):
        step = 1 << stage
        width = 8 * (n_bytes + step - 1)
        out = Signal(width, name=f"{name}_{step}")
        with m.If(skip[stage]):
            m.d.comb += out.eq(value[8 * step :])
        with m.Else():
            m.d.comb += out.eq(value)
        value = out
    return value


def from_byte(offset: Value, n_bytes: int) -> Value:
    """``n_bytes`` bits, one where the byte's number is at least ``offset``."""
    return Cat(offset <= i for i in range(n_bytes))


def up_to_byte(offset: Value, n_bytes: int) -> Value:
    """``n_bytes`` bits, one where the byte's number is at most ``offset``."""
    return Cat(offset >= i for i in range(n_bytes))
