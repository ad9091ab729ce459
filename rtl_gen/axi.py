"""AXI4 as the data movers see it: bus signatures, stream layouts, and the read arbiter."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gshw.config import BusConfig

REQUEST_BYTES_WIDTH = 24
"""Bits of a request's byte count."""

BURST_INCR = 1


def request_layout(bus: BusConfig) -> data.StructLayout:
    """A contiguous piece of memory: byte address and number of bytes, at least 1."""
    return data.StructLayout({"address": bus.address_width, "n_bytes": REQUEST_BYTES_WIDTH})


def beat_layout(bus: BusConfig) -> data.StructLayout:
    """Packed bytes of a request, the first in bits 7:0; ``last`` with the request's last beat."""
    return data.StructLayout({"data": bus.data_width, "last": 1})


def log2(power: int) -> int:
    """Exponent of a power of two."""
    return power.bit_length() - 1


class ReadSignature(wiring.Signature):
    """Address and data channel of AXI4 reads, seen by the master; one ID, so without it."""

    def __init__(self, bus: BusConfig) -> None:
        super().__init__(
            {
                "araddr": Out(bus.address_width),
                "arlen": Out(8),
                "arsize": Out(3),
                "arburst": Out(2),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(bus.data_width),
                "rresp": In(2),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


class WriteSignature(wiring.Signature):
    """Address, data and response channel of AXI4 writes, seen by the master; without an ID."""

    def __init__(self, bus: BusConfig) -> None:
        super().__init__(
            {
                "awaddr": Out(bus.address_width),
                "awlen": Out(8),
                "awsize": Out(3),
                "awburst": Out(2),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(bus.data_width),
                "wstrb": Out(bus.data_bytes),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
            }
        )


class ReadArbiter(wiring.Component):
    """Two clients on one reader: ``fetch`` before ``load``, data back in the order of requests.

    Latency: one cycle for requests, none for data, which come after the cycle in which their
    request was taken. Throughput: one request and one beat per cycle.
    At most ``2 * bus.outstanding`` requests are on their way. ``of_load`` goes with ``request``.
    ``halt`` forgets all of them; hold it until the reader is idle.
    """

    def __init__(self, bus: BusConfig) -> None:
        self.bus = bus
        requests = stream.Signature(request_layout(bus))
        beats = stream.Signature(beat_layout(bus))
        super().__init__(
            {
                "fetch_request": In(requests),
                "fetch_data": Out(beats),
                "load_request": In(requests),
                "load_data": Out(beats),
                "request": Out(requests),
                "of_load": Out(1),
                "data": In(beats),
                "halt": In(1),
                "idle": Out(1),
            }
        )

    @property
    def variant(self) -> object:
        """Arbiters of one bus are one Verilog module."""
        return self.bus

    def elaborate(self, platform) -> Module:
        m = Module()
        n_turns = 2 * self.bus.outstanding
        turns = Memory(shape=1, depth=n_turns, init=[])
        m.submodules.turns = turns
        write = turns.write_port()
        read, read_next = turns.read_port(domain="comb"), turns.read_port(domain="comb")
        write_turn = Signal(log2(n_turns) + 1)
        read_turn = Signal(log2(n_turns) + 1)
        next_turn = Signal(log2(n_turns), init=1)
        empty = Signal()
        full = Signal()
        m.d.comb += [
            empty.eq(write_turn == read_turn),
            full.eq(write_turn ^ read_turn == n_turns),
        ]

        free = Signal()
        to_load = Signal()
        m.d.comb += [
            free.eq((~self.request.valid | self.request.ready) & ~full & ~self.halt),
            to_load.eq(~self.fetch_request.valid),
            self.fetch_request.ready.eq(free),
            self.load_request.ready.eq(free & to_load),
            write.addr.eq(write_turn),
            write.data.eq(to_load),
            write.en.eq(free & (self.fetch_request.valid | self.load_request.valid)),
        ]
        payload = Signal(request_layout(self.bus), reset_less=True)
        with m.If(self.request.ready):
            m.d.sync += self.request.valid.eq(0)
        with m.If(write.en):
            m.d.sync += [
                self.request.valid.eq(1),
                self.of_load.eq(to_load),
                payload.as_value().eq(
                    Mux(
                        to_load,
                        self.load_request.payload.as_value(),
                        self.fetch_request.payload.as_value(),
                    )
                ),
                write_turn.eq(write_turn + 1),
            ]
        m.d.comb += self.request.payload.eq(payload)

        # A request's turn is written some cycles before its data come: time for a register.
        is_load = Signal()
        end = Signal()
        m.d.comb += [
            read.addr.eq(read_turn),
            read_next.addr.eq(next_turn),
            self.fetch_data.payload.eq(self.data.payload),
            self.load_data.payload.eq(self.data.payload),
            self.fetch_data.valid.eq(self.data.valid & ~is_load),
            self.load_data.valid.eq(self.data.valid & is_load),
            self.data.ready.eq(Mux(is_load, self.load_data.ready, self.fetch_data.ready)),
            end.eq(self.data.valid & self.data.ready & self.data.payload.last),
        ]
        m.d.sync += is_load.eq(Mux(end, read_next.data, read.data))
        with m.If(end):
            m.d.sync += [read_turn.eq(read_turn + 1), next_turn.eq(next_turn + 1)]
        with m.If(self.halt):
            m.d.sync += [
                self.request.valid.eq(0),
                write_turn.eq(0),
                read_turn.eq(0),
                next_turn.eq(1),
            ]
        m.d.comb += self.idle.eq(~self.request.valid & empty)
        return m
