"""The load unit: from memory into the scratchpad, the group buffer and the row buffer."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from gshw.layout import group_fields, record_fields, word_width
from gshw.program import Opcode
from rtl_gen.axi import beat_layout, request_layout
from rtl_gen.gearbox import LIMB_WIDTH, Gearbox
from rtl_gen.instructions import load_instruction_layout
from rtl_gen.layouts import load_layout, scratchpad_load_layout
from rtl_gen.library import place
from rtl_gen.run_loops import BUFFER_ADDRESS_WIDTH, RunLoops, is_beyond


class LaneSteering(wiring.Component):
    """Spreads the channels of a run over scratchpad rows.

    A beat that holds more channels than a row is cut into parts of a row, one per cycle; one that
    holds fewer fills a part of the lanes, and the next beats the others in turn.

    Latency: ``channel_enable`` and ``row`` follow by one cycle. Throughput: one part per cycle.

    Members
    -------
    clear
        Begin anew; the next beat starts a row.
    valid, data, last
        A beat, held until ``ready``; ``last`` ends the run and with it the row.
    tail_bytes
        Bytes of a run's last beat, modulo the bytes of a beat.
    fill, fill_value
        Instead of a beat: a row of equal codes.
    ready
        High in the cycle in which a valid beat is used up.
    write
        The current part holds a channel of the run.
    row_end
        The current part is the last of its row.
    channel_enable, row
        What to write; ``row`` repeats the part over all lanes and columns.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        engine, bus = config.engine, config.bus
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "data": In(bus.data_width),
                "last": In(1),
                "tail_bytes": In(range(bus.data_bytes)),
                "fill": In(1),
                "fill_value": In(engine.activation_width),
                "ready": Out(1),
                "write": Out(1),
                "row_end": Out(1),
                "channel_enable": Out(engine.channels_per_row),
                "row": Out(engine.scratchpad_row_width),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        engine, bus = self.config.engine, self.config.bus
        width = engine.activation_width
        beat_channels = bus.data_width // width
        part_channels = min(beat_channels, engine.channels_per_row)
        n_parts = beat_channels // part_channels
        n_groups = engine.channels_per_row // part_channels

        # --- which channels of the beat belong to the run ----------------------------------
        in_run = Signal(beat_channels)
        for channel in range(beat_channels):
            needed_bytes = -(-(channel + 1) * width // 8)
            m.d.comb += in_run[channel].eq(
                ~self.last | (self.tail_bytes == 0) | (self.tail_bytes >= needed_bytes)
            )

        # --- part of the beat, part of the row -----------------------------------------------
        part, enable = self.data, in_run
        m.d.comb += [self.ready.eq(1), self.row_end.eq(1)]
        if n_parts > 1:
            number = Signal(range(n_parts))
            part = self.data.word_select(number, part_channels * width)
            enable = in_run.word_select(number, part_channels)
            m.d.comb += self.ready.eq(number.all())
            with m.If(self.clear):
                m.d.sync += number.eq(0)
            with m.Elif(self.valid):
                m.d.sync += number.eq(number + 1)
        chosen = [1]
        if n_groups > 1:
            lane_group = Signal(range(n_groups))
            chosen = [lane_group == group for group in range(n_groups)]
            m.d.comb += self.row_end.eq(lane_group.all())
            with m.If(self.clear | (self.valid & self.last)):
                m.d.sync += lane_group.eq(0)
            with m.Elif(self.valid):
                m.d.sync += lane_group.eq(lane_group + 1)
        m.d.comb += self.write.eq(self.valid & enable[0])

        # --- row -----------------------------------------------------------------------------
        codes = Signal(part_channels * width, reset_less=True)
        enables = Signal(engine.channels_per_row, reset_less=True)
        m.d.sync += [
            codes.eq(Mux(self.fill, self.fill_value.replicate(part_channels), part)),
            enables.eq(
                Cat(
                    self.fill | (enable[channel] & group)
                    for group in chosen
                    for channel in range(part_channels)
                )
            ),
        ]
        m.d.comb += [
            self.channel_enable.eq(enables),
            self.row.eq(
                Cat(
                    codes.word_select(channel, width).replicate(engine.columns)
                    for channel in range(part_channels)
                ).replicate(n_groups)
            ),
        ]
        return m


class LoadUnit(wiring.Component):
    """Executes one load or fill at a time.

    Timing, of an instruction accepted in cycle t (``instruction`` transfers):

    - request i of a load is valid from t + 2 + i on, if all before it were taken at once;
    - ``data`` is ready from t + 3 on; what a beat completes in cycle c is written in c + 1.
      Activations take one cycle per beat, or one per scratchpad row where a beat is wider
      (``ready`` is high in the last); groups and records take :attr:`Gearbox.n_parts`;
    - word i of a fill is written in t + 4 + i;
    - ``done`` is high two cycles after the last beat was taken, one after the last write;
      ``instruction`` is ready again in the same cycle.

    A run's target counts modulo 65536, the words within a run do not. An empty run, a write
    beyond its buffer (which is not done) and an incomplete group or record raise ``error`` in the
    cycle after they were seen and stop the unit until ``halt``, without ``done``.

    Parameters
    ----------
    config
        Of the engine and the bus.
    held
        ``instruction`` holds its payload until ``done``, so that no copy is made of it.

    Members
    -------
    instruction
        ``run_bytes`` of a fill equals its ``n_words``: they are the same bits.
    request, data
        To and from memory: one request per run, ``last`` with the last beat of each.
    load_scratchpad, load_group, load_record
        Write ports of the engine.
    done, error
        One cycle each.
    halt
        Drop everything; afterwards the unit is idle.
    idle
        No instruction is held.
    """

    def __init__(self, config: Config, *, held: bool = False) -> None:
        self.config = config
        self._held = held
        engine, bus = config.engine, config.bus
        self._group_width = word_width(group_fields(engine))
        self._record_width = word_width(record_fields(engine))
        group_load = load_layout(engine.group_address_width, self._group_width)
        record_load = load_layout(engine.record_load_width, self._record_width)
        super().__init__(
            {
                "instruction": In(stream.Signature(load_instruction_layout())),
                "request": Out(stream.Signature(request_layout(bus))),
                "data": In(stream.Signature(beat_layout(bus))),
                "load_scratchpad": Out(
                    stream.Signature(scratchpad_load_layout(engine), always_ready=True)
                ),
                "load_group": Out(stream.Signature(group_load, always_ready=True)),
                "load_record": Out(stream.Signature(record_load, always_ready=True)),
                "done": Out(1),
                "error": Out(1),
                "halt": In(1),
                "idle": Out(1),
            }
        )

    def _beyond_records(self, address: Value) -> Value:
        """Neither in the row buffer nor in the activation tables."""
        engine = self.config.engine
        beyond = is_beyond(address, engine.row_buffer_depth)
        if not engine.activation_tables:
            return beyond
        bit = engine.record_load_width - 1
        n_words = engine.activation_tables * engine.table_words
        in_tables = ~is_beyond(address[:bit], n_words) if n_words < 1 << bit else Const(1)
        return beyond & ~(in_tables & address[bit] & ~address[bit + 1 :].any())

    def elaborate(self, platform) -> Module:
        m = Module()
        engine, bus = self.config.engine, self.config.bus

        # --- instruction -------------------------------------------------------------------
        offered = self.instruction.payload
        kinds = data.StructLayout({"activations": 1, "groups": 1, "records": 1, "fill": 1})
        opcodes = (
            Opcode.LOAD_ACTIVATIONS,
            Opcode.LOAD_GROUPS,
            Opcode.LOAD_RECORDS,
            Opcode.FILL,
        )
        kind = Signal(kinds, reset_less=True)
        active = Signal(kinds)
        ready = Signal(init=1)
        accept = Signal()
        starting = Signal(2)
        columns = Signal(engine.columns, reset_less=True)
        fill_value = Signal(engine.activation_width, reset_less=True)
        if self._held:
            run_bytes = offered.run_bytes
        else:
            run_bytes = Signal.like(offered.run_bytes, reset_less=True)
            with m.If(accept):
                m.d.sync += run_bytes.eq(offered.run_bytes)
        empty = Signal()
        is_fill = offered.opcode == Opcode.FILL
        m.d.comb += [
            self.instruction.ready.eq(ready),
            self.idle.eq(ready),
            accept.eq(self.instruction.valid & ready),
            empty.eq(starting[0] & (run_bytes == 0)),
        ]
        with m.If(accept):
            m.d.sync += [
                kind.eq(Cat(offered.opcode == code for code in opcodes)),
                columns.eq(offered.columns),
                fill_value.eq(offered.value),
            ]
        m.d.sync += starting.eq(Cat(accept, starting[0] & ~empty))

        # --- requests; in a fill, this walker counts the words of each run -------------------
        requests = place(m, platform, "requests", RunLoops(bus.address_width, held=self._held))
        m.d.comb += [
            requests.load.eq(accept),
            requests.base.eq(offered.address),
            requests.count[0].eq(Mux(is_fill, offered.n_words, offered.count_0)),
            requests.count[1].eq(offered.count_1),
            requests.stride[0].eq(offered.memory_stride_0),
            requests.stride[1].eq(offered.memory_stride_1),
            requests.advance.eq(active.fill | (self.request.valid & self.request.ready)),
            self.request.payload.address.eq(requests.value),
            self.request.payload.n_bytes.eq(run_bytes),
        ]
        with m.If(starting[0]):
            m.d.sync += self.request.valid.eq(~kind.fill & ~empty)
        with m.Elif(self.request.ready & requests.last):
            m.d.sync += self.request.valid.eq(0)

        # --- beats to parts of words ---------------------------------------------------------
        beat = self.data
        steering = place(m, platform, "steering", LaneSteering(self.config))
        group_limbs = -(-self._group_width // LIMB_WIDTH)
        record_limbs = -(-self._record_width // LIMB_WIDTH)
        groups = Gearbox(bus.data_width, group_limbs)
        place(m, platform, "group_gearbox", groups)
        if self._held and group_limbs == record_limbs:
            # Small: both kinds of words take turns.
            records = groups
            words = ((active.groups | active.records, groups),)
        else:
            records = Gearbox(bus.data_width, record_limbs)
            place(m, platform, "record_gearbox", records)
            words = ((active.groups, groups), (active.records, records))
        takers = ((active.activations, steering), *words)
        for chosen, taker in takers:
            m.d.comb += [
                taker.clear.eq(starting[0]),
                taker.valid.eq(chosen & beat.valid),
                taker.data.eq(beat.payload.data),
                taker.last.eq(beat.payload.last),
                taker.tail_bytes.eq(run_bytes),
            ]
        m.d.comb += [
            steering.fill.eq(active.fill),
            steering.fill_value.eq(fill_value),
            beat.ready.eq(reduce(or_, (chosen & taker.ready for chosen, taker in takers))),
        ]

        # --- where each word goes ------------------------------------------------------------
        targets = place(m, platform, "targets", RunLoops(BUFFER_ADDRESS_WIDTH, held=self._held))
        run_end = Signal()
        next_word = Signal()
        address = Signal(BUFFER_ADDRESS_WIDTH + 1, reset_less=True)
        is_final_run = Signal(reset_less=True)
        m.d.comb += [
            targets.load.eq(accept),
            targets.base.eq(offered.target),
            targets.count[0].eq(offered.count_0),
            targets.count[1].eq(offered.count_1),
            targets.stride[0].eq(offered.target_stride_0),
            targets.stride[1].eq(offered.target_stride_1),
            targets.advance.eq(starting[1] | run_end),
            run_end.eq(
                Mux(
                    active.fill,
                    requests.line_last,
                    beat.valid & beat.ready & beat.payload.last,
                )
            ),
            next_word.eq(
                # After the error of an incomplete word, the address does not matter.
                active.fill
                | (steering.valid & steering.row_end)
                | groups.word_end
                | records.word_end
            ),
        ]
        with m.If(targets.advance | next_word):
            m.d.sync += address.eq(Mux(targets.advance, targets.value, address + 1))
        with m.If(targets.advance):
            m.d.sync += is_final_run.eq(targets.last)

        # --- writes --------------------------------------------------------------------------
        written_address = Signal.like(address, reset_less=True)
        m.d.sync += written_address.eq(address)
        ports = (
            (
                self.load_scratchpad,
                active.fill | steering.write,
                is_beyond(address, engine.bank_depth),
            ),
            (
                self.load_group,
                groups.finish & active.groups,
                is_beyond(address, engine.group_buffer_depth),
            ),
            (
                self.load_record,
                records.finish & active.records,
                self._beyond_records(address),
            ),
        )
        bad = [empty, groups.incomplete, records.incomplete]
        for port, write, beyond in ports:
            bad.append(write & beyond)
            m.d.sync += port.valid.eq(write & ~beyond & ~self.halt)
            m.d.comb += port.payload.address.eq(written_address)
        m.d.comb += [
            self.load_scratchpad.payload.channel_enable.eq(steering.channel_enable),
            self.load_scratchpad.payload.column_enable.eq(columns),
            self.load_scratchpad.payload.data.eq(steering.row),
            self.load_group.payload.data.eq(groups.word[: self._group_width]),
            self.load_record.payload.data.eq(records.word[: self._record_width]),
        ]

        # --- begin and end -------------------------------------------------------------------
        stop = Signal()
        finishing = Signal()
        m.d.comb += stop.eq(reduce(or_, bad))
        m.d.sync += [
            self.error.eq(stop),
            finishing.eq(run_end & is_final_run & ~stop),
            self.done.eq(finishing),
        ]
        with m.If(starting[1]):
            m.d.sync += active.eq(kind)
        with m.Elif(stop | (run_end & is_final_run)):
            m.d.sync += active.eq(0)
        with m.If(accept):
            m.d.sync += ready.eq(0)
        with m.Elif(finishing):
            m.d.sync += ready.eq(1)
        with m.If(self.halt):
            m.d.sync += [
                ready.eq(1),
                starting.eq(0),
                active.eq(0),
                finishing.eq(0),
                self.request.valid.eq(0),
                self.done.eq(0),
                self.error.eq(0),
            ]
        return m
