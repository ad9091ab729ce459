"""The engine: wiring of the components, command handling, counters."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig, Gather, Routing
from gshw.layout import group_fields, record_fields, word_width
from gshw.pipeline import BANK_LATENCY, Pipeline
from gshw.registers import COUNTER_WIDTH, COUNTERS
from rtl_gen.buffers import GroupBuffer, RowBuffer
from rtl_gen.compute import Accumulators, AdderTree, MultiplierArray
from rtl_gen.delay import delay
from rtl_gen.gather import ArbitratedGather, ScheduledGather
from rtl_gen.layouts import command_layout, load_layout
from rtl_gen.library import place
from rtl_gen.output import DrainControl, Requantiser, ScatterWriter
from rtl_gen.routing import BenesNetwork, Crossbar, DirectRouting
from rtl_gen.scratchpad import Scratchpad
from rtl_gen.sequencer import PositionLoops


class Engine(wiring.Component):
    """One gather/scatter engine.

    Members
    -------
    command
        Accepted when the engine is idle; refused (and consumed) on a foreign config hash or a
        range outside a buffer, which sets the error flag.
    load_scratchpad
        One scratchpad row per cycle; waits while the engine writes results.
    load_group, load_record
        One word per cycle, at any time.
    read_request, read_response
        One scratchpad row per cycle, while idle; the response may be stalled.
    busy
        From the cycle after a command is accepted until its last result is written.
    done
        One cycle, after ``busy`` falls. The next command is accepted from that cycle on, so the
        counters can be read in it.
    counter_*
        Of the last command; see :mod:`gshw.registers`.
    error_*
        Sticky until ``clear_errors``.
    config_hash
        First 32 bits of the config's hash.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        row_width = config.scratchpad_row_width
        group_width = word_width(group_fields(config))
        record_width = word_width(record_fields(config))
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(config))),
                "load_scratchpad": In(
                    stream.Signature(load_layout(config.address_width, row_width))
                ),
                "load_group": In(
                    stream.Signature(
                        load_layout(config.group_address_width, group_width), always_ready=True
                    )
                ),
                "load_record": In(
                    stream.Signature(
                        load_layout(config.record_address_width, record_width), always_ready=True
                    )
                ),
                "read_request": In(stream.Signature(config.address_width)),
                "read_response": Out(stream.Signature(row_width)),
                "clear_errors": In(1),
                "busy": Out(1),
                "done": Out(1),
                "config_hash": Out(32),
                "error_config_hash": Out(1),
                "error_command": Out(1),
                "error_address": Out(1),
            }
            | {f"counter_{name}": Out(COUNTER_WIDTH) for name in COUNTERS}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        pipeline = Pipeline(config)
        arbitrated = config.gather is Gather.ARBITRATED
        lanes = range(config.lanes)
        m.d.comb += self.config_hash.eq(config.hash32)

        # --- command -----------------------------------------------------------------------
        current = Signal(command_layout(config))
        offered = self.command.payload
        start, refused_hash, refused_range = Signal(), Signal(), Signal()
        reading, was_busy = Signal(), Signal()
        accept = self.command.valid & self.command.ready
        empty_loop = reduce(or_, (offered.count[i] == 0 for i in range(len(offered.count))))
        group_end = offered.group_base + offered.n_groups
        record_end = offered.record_base + offered.n_records
        m.d.comb += [
            self.command.ready.eq(~self.busy & ~was_busy & ~reading),
            refused_hash.eq(accept & (offered.config_hash != config.hash32)),
            refused_range.eq(
                accept
                & (
                    (offered.n_groups == 0)
                    | empty_loop
                    | (group_end > config.group_buffer_depth)
                    | (record_end > config.row_buffer_depth)
                )
            ),
            start.eq(accept & ~refused_hash & ~refused_range),
        ]
        with m.If(start):
            m.d.sync += current.eq(offered)

        # --- issue -------------------------------------------------------------------------
        groups = place(m, platform, "group_buffer", GroupBuffer(config))
        gather_type = ArbitratedGather if arbitrated else ScheduledGather
        gather = place(m, platform, "gather", gather_type(config))
        read_loops = place(m, platform, "read_loops", PositionLoops(config))
        wiring.connect(m, groups.head, gather.i)
        wiring.connect(m, wiring.flipped(self.load_group), groups.load)
        fetching = Signal()
        finish = Signal()
        with m.If(start):
            m.d.sync += fetching.eq(1)
        with m.Elif(finish):
            m.d.sync += fetching.eq(0)
        m.d.comb += [
            groups.start.eq(start),
            groups.stop.eq(finish),
            gather.restart.eq(start & ~offered.continues),
            groups.base.eq(offered.group_base),
            groups.n_groups.eq(offered.n_groups),
            read_loops.start.eq(start),
            read_loops.base.eq(offered.read_base),
            read_loops.loops.count.eq(offered.count),
            read_loops.loops.step.eq(offered.read_step),
            read_loops.advance.eq(gather.pass_end),
            finish.eq(gather.pass_end & read_loops.last),
        ]

        # --- gather ------------------------------------------------------------------------
        scratchpad = place(m, platform, "scratchpad", Scratchpad(config))
        base = delay(m, read_loops.address, pipeline.address - 1, "read_base")
        issued = delay(m, gather.tag.valid, pipeline.address - 1, "issued", resets=True)
        move = Signal()
        read_overflow = Signal()
        carries = []
        for b in lanes:
            address = Signal(config.address_width, name=f"read_address_{b}", reset_less=True)
            total = Signal(config.address_width + 1, name=f"read_total_{b}")
            m.d.comb += [
                total.eq(base + gather.offset[b]),
                scratchpad.read_address[b].eq(address),
            ]
            with m.If(move):
                m.d.sync += address.eq(
                    Mux(self.busy, total[: config.address_width], self.read_request.payload)
                )
            carries.append(total[-1])
        m.d.sync += read_overflow.eq(issued & reduce(or_, carries))
        m.d.comb += scratchpad.read_enable.eq(move)

        # --- route -------------------------------------------------------------------------
        match config.routing:
            case Routing.DIRECT:
                routing = DirectRouting(config.lanes, config.bank_width)
            case Routing.BENES:
                routing = BenesNetwork(config.lanes, config.bank_width)
                m.d.comb += routing.switch.eq(groups.route)
            case Routing.CROSSBAR:
                routing = Crossbar(config.lanes, config.bank_width)
                if arbitrated:
                    late = pipeline.route_delay - 1
                    m.d.comb += routing.enable.eq(delay(m, gather.enable, late, "lane_enable"))
                    for lane in lanes:
                        bank = delay(m, gather.bank[lane], late, f"lane_bank_{lane}")
                        m.d.comb += routing.bank[lane].eq(bank)
                else:
                    banks = data.View(
                        data.ArrayLayout(config.log2_lanes, config.lanes), groups.route
                    )
                    m.d.comb += routing.enable.eq(-1)
                    m.d.comb += [routing.bank[lane].eq(banks[lane]) for lane in lanes]
        place(m, platform, "routing", routing)
        m.d.comb += [routing.i[b].eq(scratchpad.read_data[b]) for b in lanes]

        # --- multiply and add --------------------------------------------------------------
        multipliers = place(m, platform, "multipliers", MultiplierArray(config))
        m.d.comb += multipliers.signed_input.eq(current.signed_input)
        m.d.comb += [multipliers.word[lane].eq(routing.o[lane]) for lane in lanes]
        m.d.comb += [
            weight.eq(value)
            for weight, value in zip(multipliers.weight, groups.weight, strict=True)
        ]
        accumulators = place(m, platform, "accumulators", Accumulators(config))
        weights_per_row = config.lanes_per_row * config.block
        for row in range(config.rows):
            for column in range(config.columns):
                tree = AdderTree(
                    weights_per_row, multipliers.product_width, config.accumulator_width
                )
                place(m, platform, f"adder_tree_{row}_{column}", tree)
                for n in range(weights_per_row):
                    product = (row * weights_per_row + n) * config.columns + column
                    m.d.comb += tree.i[n].eq(multipliers.product[product])
                m.d.comb += accumulators.i[row * config.columns + column].eq(tree.o)
        tag = delay(m, gather.tag, pipeline.accumulate, "tag", resets=True)
        m.d.comb += accumulators.tag.eq(tag)

        # --- drain, requantise, scatter ------------------------------------------------------
        records = place(m, platform, "row_buffer", RowBuffer(config))
        drain = place(m, platform, "drain", DrainControl(config))
        write_loops = place(m, platform, "write_loops", PositionLoops(config))
        scatter = place(m, platform, "scatter", ScatterWriter(config))
        wiring.connect(m, wiring.flipped(self.load_record), records.load)
        wiring.connect(m, records.record, drain.i)
        m.d.comb += [
            records.start.eq(start),
            records.base.eq(offered.record_base),
            records.n_records.eq(offered.n_records),
            drain.tag.eq(tag),
            accumulators.shift.eq(drain.shift),
            write_loops.start.eq(start),
            write_loops.base.eq(offered.write_base),
            write_loops.loops.count.eq(offered.count),
            write_loops.loops.step.eq(offered.write_step),
            write_loops.advance.eq(drain.pass_end),
        ]
        latency = pipeline.drain - scatter.latency
        for d in range(config.drain_rows):
            for column in range(config.columns):
                index = d * config.columns + column
                unit = Requantiser(config.accumulator_width, config.activation_width)
                place(m, platform, f"requantiser_{d}_{column}", unit)
                m.d.comb += [
                    unit.i.eq(accumulators.o[index]),
                    unit.bias.eq(drain.record.bias[d]),
                    unit.multiplier.eq(drain.record.multiplier[d]),
                    unit.shift.eq(drain.record.shift[d]),
                    unit.low.eq(current.low),
                    unit.high.eq(current.high),
                    scatter.code[index].eq(unit.o),
                ]
            row = delay(m, drain.record.row[d], latency, f"row_{d}")
            m.d.comb += scatter.row[d].eq(row)
        valid = Signal(config.drain_rows)
        m.d.comb += valid.eq(Mux(drain.active, drain.record.valid.as_value(), 0))
        m.d.comb += scatter.valid.eq(delay(m, valid, latency, "row_valid", resets=True))
        m.d.comb += scatter.base.eq(delay(m, write_loops.address, latency, "write_base"))

        # --- host access -------------------------------------------------------------------
        writing = Signal()
        load = self.load_scratchpad
        m.d.comb += [
            writing.eq(reduce(or_, (scatter.enable[b].any() for b in lanes))),
            load.ready.eq(~writing),
        ]
        for b in lanes:
            m.d.comb += [
                scratchpad.write_enable[b].eq(
                    Mux(writing, scatter.enable[b], load.valid.replicate(config.block))
                ),
                scratchpad.write_address[b].eq(
                    Mux(writing, scatter.address[b], load.payload.address)
                ),
                scratchpad.write_data[b].eq(
                    Mux(
                        writing,
                        scatter.data[b],
                        load.payload.data.word_select(b, config.bank_width),
                    )
                ),
            ]
        request = Signal()
        m.d.comb += [
            self.read_request.ready.eq(~self.busy & ~self.command.valid & move),
            request.eq(self.read_request.valid & self.read_request.ready),
            move.eq(~self.read_response.valid | self.read_response.ready),
            self.read_response.payload.eq(Cat(scratchpad.read_data)),
        ]
        stages = [request]
        for stage in range(1 + BANK_LATENCY):
            following = Signal(name=f"read_{stage}")
            with m.If(move):
                m.d.sync += following.eq(stages[-1])
            stages.append(following)
        m.d.comb += [
            self.read_response.valid.eq(stages[-1]),
            reading.eq(reduce(or_, stages[1:])),
        ]

        # --- status ------------------------------------------------------------------------
        occupied = self._occupied(m, gather.tag.valid, pipeline.accumulate, "group_flight")
        draining = self._occupied(m, drain.active, pipeline.drain, "row_flight")
        m.d.comb += self.busy.eq(fetching | occupied | drain.active | draining)
        m.d.sync += [was_busy.eq(self.busy), self.done.eq(was_busy & ~self.busy)]
        self._count(m, start, gather, drain)
        for flag, event in (
            (self.error_config_hash, refused_hash),
            (self.error_command, refused_range | drain.missing),
            (self.error_address, read_overflow | scatter.overflow),
        ):
            with m.If(event):
                m.d.sync += flag.eq(1)
            with m.Elif(self.clear_errors):
                m.d.sync += flag.eq(0)
        return m

    def _occupied(self, m: Module, event, n_cycles: int, name: str):
        """High for the ``n_cycles`` cycles after each event."""
        flight = Signal(n_cycles, name=name)
        m.d.sync += flight.eq(Cat(event, flight)[:n_cycles])
        return flight.any()

    def _count(self, m: Module, start, gather, drain) -> None:
        events = {
            "cycles": self.busy,
            "groups": gather.tag.valid & ~gather.replayed,
            "stalls": gather.stalled,
            "drains": drain.active,
            "conflicts": gather.conflicted,
            "replays": gather.replayed,
        }
        for name in COUNTERS:
            counter = getattr(self, f"counter_{name}")
            with m.If(start):
                m.d.sync += counter.eq(0)
            with m.Elif(events[name]):
                m.d.sync += counter.eq(counter + 1)
