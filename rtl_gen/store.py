"""The store unit: from the output buffer to memory."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from rtl_gen.axi import beat_layout, request_layout
from rtl_gen.instructions import store_instruction_layout
from rtl_gen.library import place
from rtl_gen.run_loops import (
    BUFFER_ADDRESS_WIDTH,
    N_RUN_LOOPS,
    RUN_COUNT_WIDTH,
    RunLoops,
    is_beyond,
)

MAX_ROWS_IN_FLIGHT = 7
"""Most rows that the output buffer may hold between request and response."""


def _log2(power: int) -> int:
    return power.bit_length() - 1


class RowReader(wiring.Component):
    """Asks for the rows of all runs, in order and without a pause.

    Latency: the first request is valid three cycles after ``load``. Throughput: one row per cycle.

    Parameters
    ----------
    config
        Of the engine.
    held
        As of :class:`RunLoops`.

    Members
    -------
    load, source, count, stride
        Of the runs, as the members of :class:`RunLoops`.
    n_rows_less_1
        Rows of a run; steady from the cycle after ``load`` on.
    stop
        Ask for nothing more.
    request
        Row addresses.
    beyond
        The request is not within the buffer; it is the last one.
    """

    def __init__(self, config: Config, *, held: bool = False) -> None:
        self.config = config
        self._held = held
        address_width = config.engine.output_address_width
        super().__init__(
            {
                "load": In(1),
                "source": In(BUFFER_ADDRESS_WIDTH),
                "count": In(data.ArrayLayout(RUN_COUNT_WIDTH, N_RUN_LOOPS)),
                "stride": In(data.ArrayLayout(BUFFER_ADDRESS_WIDTH, N_RUN_LOOPS)),
                "n_rows_less_1": In(address_width),
                "stop": In(1),
                "request": Out(stream.Signature(address_width)),
                "beyond": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        sources = place(m, platform, "sources", RunLoops(BUFFER_ADDRESS_WIDTH, held=self._held))
        loading = Signal(2)
        taken = Signal()
        run_end = Signal()
        address = Signal(BUFFER_ADDRESS_WIDTH + 1, reset_less=True)
        rows_left = Signal.like(self.n_rows_less_1, reset_less=True)
        is_final_run = Signal(reset_less=True)
        m.d.sync += loading.eq(Cat(self.load, loading[0]))
        m.d.comb += [
            sources.load.eq(self.load),
            sources.base.eq(self.source),
            sources.count.eq(self.count),
            sources.stride.eq(self.stride),
            taken.eq(self.request.valid & self.request.ready),
            run_end.eq(taken & (rows_left == 0)),
            sources.advance.eq(loading[1] | run_end),
            self.request.payload.eq(address),
            self.beyond.eq(is_beyond(address, self.config.engine.output_depth)),
        ]
        with m.If(loading[1] | taken):
            m.d.sync += [
                address.eq(Mux(sources.advance, sources.value, address + 1)),
                rows_left.eq(Mux(sources.advance, self.n_rows_less_1, rows_left - 1)),
            ]
        with m.If(sources.advance):
            m.d.sync += is_final_run.eq(sources.last)
        with m.If(self.stop):
            m.d.sync += [loading.eq(0), self.request.valid.eq(0)]
        with m.Elif(loading[1]):
            m.d.sync += self.request.valid.eq(1)
        with m.Elif((run_end & is_final_run) | (taken & self.beyond)):
            m.d.sync += self.request.valid.eq(0)
        return m


class BeatPacker(wiring.Component):
    """Takes one column out of rows and packs it into beats, run by run.

    A row gives several beats, or several rows give one; what is left of a run's last row is
    dropped. ``row.ready`` comes from registers only.

    Latency: two cycles from the row that completes a beat to the beat. Throughput: one beat per
    cycle, as far as there are rows: at most one row per cycle.

    Parameters
    ----------
    config
        Of the engine and the bus.
    small
        One register fewer on the way, so that ``ready`` passes through.

    Members
    -------
    clear
        Begin anew with these values:
    n_units_less_1
        Units of a run; a unit is a beat, or a row where that is shorter.
    column
        To take.
    row
        Rows of the output buffer, in the order of the runs.
    beat
        Packed channels; ``last`` with the last of a run, whose spare bytes are arbitrary.
    empty
        Nothing is held.
    """

    def __init__(self, config: Config, *, small: bool = False) -> None:
        self.config = config
        self._small = small
        engine, bus = config.engine, config.bus
        self._row_width = engine.channels_per_row * engine.activation_width
        self._unit_width = min(self._row_width, bus.data_width)
        self._units_per_row = self._row_width // self._unit_width
        super().__init__(
            {
                "clear": In(1),
                "n_units_less_1": In(engine.output_address_width + _log2(self._units_per_row)),
                "column": In(range(engine.columns)),
                "row": In(stream.Signature(engine.scratchpad_row_width)),
                "beat": Out(stream.Signature(beat_layout(bus))),
                "empty": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        engine, bus = self.config.engine, self.config.bus
        n_columns, per_row = engine.columns, self._units_per_row
        n_slots = bus.data_width // self._unit_width

        # --- units of a run: which of the row (one-hot, with the column), where in the beat ------
        move = Signal()
        step = Signal()
        restart = Signal()
        is_last = Signal(reset_less=True)
        units_left = Signal.like(self.n_units_less_1, reset_less=True)
        chosen = Signal(per_row * n_columns, reset_less=True)
        slot = Signal(n_slots, reset_less=True)
        in_first_unit = Cat(self.column == column for column in range(n_columns))
        m.d.comb += [
            step.eq(self.row.valid & move),
            restart.eq(self.clear | is_last),
            self.row.ready.eq(move & (is_last | chosen[-n_columns:].any())),
        ]
        with m.If(self.clear | step):
            m.d.sync += [
                units_left.eq(Mux(restart, self.n_units_less_1, units_left - 1)),
                is_last.eq(Mux(restart, self.n_units_less_1 == 0, units_left == 1)),
                chosen.eq(Mux(restart, in_first_unit, chosen.rotate_left(n_columns))),
                slot.eq(Mux(restart, 1, slot.rotate_left(1))),
            ]

        # --- the column's channels -----------------------------------------------------------
        width = engine.activation_width
        unit_channels = self._unit_width // width
        codes = [
            reduce(
                or_,
                (
                    self.row.payload.word_select(
                        (unit * unit_channels + channel) * n_columns + column, width
                    )
                    & chosen[unit * n_columns + column].replicate(width)
                    for unit in range(per_row)
                    for column in range(n_columns)
                ),
            )
            for channel in range(unit_channels)
        ]
        packed = Signal(beat_layout(bus), reset_less=True)
        packed_valid = Signal()
        with m.If(move):
            m.d.sync += [
                packed_valid.eq(step & (is_last | slot[-1])),
                packed.last.eq(is_last),
            ]
            for number in range(n_slots):
                with m.If(slot[number]):
                    m.d.sync += packed.data.word_select(number, self._unit_width).eq(Cat(codes))

        if self._small:
            m.d.comb += [
                self.beat.payload.eq(packed),
                self.beat.valid.eq(packed_valid),
                move.eq(~packed_valid | self.beat.ready),
                self.empty.eq(~packed_valid),
            ]
            with m.If(self.clear):
                m.d.sync += packed_valid.eq(0)
            return m

        # --- two registers, so that no ready passes through ------------------------------------
        spare = Signal.like(packed, reset_less=True)
        spare_valid = Signal()
        out_moves = ~self.beat.valid | self.beat.ready
        m.d.comb += [
            move.eq(~spare_valid),
            self.empty.eq(~packed_valid & ~spare_valid & ~self.beat.valid),
        ]
        with m.If(move):
            m.d.sync += spare.eq(packed)
        with m.If(out_moves):
            m.d.sync += [
                self.beat.payload.eq(Mux(spare_valid, spare, packed)),
                self.beat.valid.eq(spare_valid | packed_valid),
                spare_valid.eq(0),
            ]
        with m.Elif(move):
            m.d.sync += spare_valid.eq(packed_valid)
        with m.If(self.clear):
            m.d.sync += [packed_valid.eq(0), spare_valid.eq(0), self.beat.valid.eq(0)]
        return m


class StoreUnit(wiring.Component):
    """Executes one store at a time.

    Timing, of an instruction accepted in cycle t (``instruction`` transfers), for an output
    buffer that answers L cycles after a request:

    - request i is valid from t + 2 + i on, if all before it were taken at once;
    - row i is asked for in t + 3 + i (later where the beats cannot keep up, which delays none of
      them), and a row that arrives in cycle c begins to leave as a beat in c + 2: the first beat
      is valid in t + 5 + L, or one cycle later for each further row that a beat needs;
    - from then on one beat per cycle, across rows and runs, while the writer takes them; a beat
      that needs several rows takes as many cycles;
    - if the last beat is taken in cycle c (and all requests before), ``done`` is high in the
      cycle after the first one from c + 2 on in which ``writer_idle`` is high; ``instruction``
      is ready again in the same cycle as ``done``.

    A column that the engine does not have, a run that is empty or longer than the output buffer,
    and a row beyond the buffer raise ``error`` in the cycle after they were seen and stop the unit
    until ``halt``, without ``done``. Beats of earlier rows may still leave.

    Parameters
    ----------
    config
        Of the engine and the bus.
    small
        ``instruction`` holds its payload until ``done``, so that no copy is made of it; and see
        :class:`BeatPacker`.

    Members
    -------
    instruction
        What to store.
    read_request, read_response
        Rows of the output buffer.
    request, request_last, data
        To the writer: one request per run, ``request_last`` with the instruction's last one.
    writer_idle
        All requests and data given to the writer are in memory.
    done, error
        One cycle each.
    halt
        Drop everything, rows under way included; afterwards the unit is idle.
    idle
        No instruction is held.
    """

    def __init__(self, config: Config, *, small: bool = False) -> None:
        self.config = config
        self._small = small
        engine, bus = config.engine, config.bus
        super().__init__(
            {
                "instruction": In(stream.Signature(store_instruction_layout())),
                "read_request": Out(stream.Signature(engine.output_address_width)),
                "read_response": In(stream.Signature(engine.scratchpad_row_width)),
                "request": Out(stream.Signature(request_layout(bus))),
                "request_last": Out(1),
                "data": Out(stream.Signature(beat_layout(bus))),
                "writer_idle": In(1),
                "done": Out(1),
                "error": Out(1),
                "halt": In(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        engine, bus = self.config.engine, self.config.bus

        # --- instruction -------------------------------------------------------------------
        offered = self.instruction.payload
        ready = Signal(init=1)
        accept = Signal()
        bad = Signal()
        starting = Signal(2)
        if self._small:
            run_bytes = offered.run_bytes
        else:
            run_bytes = Signal.like(offered.run_bytes, reset_less=True)
            with m.If(accept):
                m.d.sync += run_bytes.eq(offered.run_bytes)
        column = Signal.like(offered.column, reset_less=True)
        row_bytes = engine.channels_per_row * engine.activation_width // 8
        # One bit longer than run_bytes: an empty run becomes longer than any buffer.
        last_byte = run_bytes - 1
        last_row = last_byte[_log2(row_bytes) :]
        last_unit = last_byte[_log2(min(row_bytes, bus.data_bytes)) :]
        m.d.comb += [
            self.instruction.ready.eq(ready),
            self.idle.eq(ready),
            accept.eq(self.instruction.valid & ready),
            bad.eq(
                starting[0]
                & ((last_row >> engine.output_address_width).any() | (column >= engine.columns))
            ),
        ]
        with m.If(accept):
            m.d.sync += column.eq(offered.column)
        m.d.sync += starting.eq(Cat(accept, starting[0] & ~bad))

        # --- requests ----------------------------------------------------------------------
        requests = place(m, platform, "requests", RunLoops(bus.address_width, held=self._small))
        m.d.comb += [
            requests.load.eq(accept),
            requests.base.eq(offered.address),
            requests.count.eq(Cat(offered.count_0, offered.count_1)),
            requests.stride[0].eq(offered.memory_stride_0),
            requests.stride[1].eq(offered.memory_stride_1),
            requests.advance.eq(self.request.valid & self.request.ready),
            self.request.payload.address.eq(requests.value),
            self.request.payload.n_bytes.eq(run_bytes),
            self.request_last.eq(requests.last),
        ]
        with m.If(starting[0]):
            m.d.sync += self.request.valid.eq(~bad)
        with m.Elif(requests.advance & requests.last):
            m.d.sync += self.request.valid.eq(0)

        # --- rows to beats -------------------------------------------------------------------
        rows = place(m, platform, "rows", RowReader(self.config, held=self._small))
        packer = place(m, platform, "packer", BeatPacker(self.config, small=self._small))
        wiring.connect(m, rows.request, wiring.flipped(self.read_request))
        wiring.connect(m, packer.beat, wiring.flipped(self.data))
        beyond = Signal()
        stop = Signal()
        active = Signal()
        asked = Signal()
        answered = Signal()
        in_flight = Signal(range(MAX_ROWS_IN_FLIGHT + 1))
        m.d.comb += [
            rows.load.eq(accept),
            rows.source.eq(offered.source),
            rows.count.eq(requests.count),
            rows.stride.eq(Cat(offered.source_stride_0, offered.source_stride_1)),
            rows.n_rows_less_1.eq(last_row),
            rows.stop.eq(bad | self.halt),
            packer.clear.eq(starting[1] | self.halt),
            packer.n_units_less_1.eq(last_unit),
            packer.column.eq(column),
            packer.row.payload.eq(self.read_response.payload),
            packer.row.valid.eq(self.read_response.valid & active),
            self.read_response.ready.eq(packer.row.ready | ~active),
            asked.eq(self.read_request.valid & self.read_request.ready),
            answered.eq(packer.row.valid & packer.row.ready),
            beyond.eq(asked & rows.beyond),
        ]
        # A cycle later, as no row is asked for after one beyond the buffer.
        m.d.sync += stop.eq(beyond)
        with m.If(asked ^ answered):
            m.d.sync += in_flight.eq(in_flight + Mux(asked, 1, -1))

        # --- begin and end -------------------------------------------------------------------
        sent = Signal()
        waiting = Signal()
        m.d.comb += sent.eq(
            active
            & ~self.request.valid
            & ~self.read_request.valid
            & (in_flight == 0)
            & packer.empty
        )
        m.d.sync += [self.error.eq(beyond | bad), self.done.eq(waiting & self.writer_idle)]
        with m.If(starting[1]):
            m.d.sync += [active.eq(1), in_flight.eq(0)]
        with m.Elif(stop | sent):
            m.d.sync += active.eq(0)
        with m.If(sent):
            m.d.sync += waiting.eq(1)
        with m.Elif(self.writer_idle):
            m.d.sync += waiting.eq(0)
        with m.If(accept):
            m.d.sync += ready.eq(0)
        with m.Elif(waiting & self.writer_idle):
            m.d.sync += ready.eq(1)
        with m.If(self.halt):
            m.d.sync += [
                ready.eq(1),
                starting.eq(0),
                active.eq(0),
                waiting.eq(0),
                self.request.valid.eq(0),
                self.done.eq(0),
                self.error.eq(0),
            ]
        return m
