"""The engine: wiring of the components, command handling, counters."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import EngineConfig, Gather, Routing
from gshw.layout import group_fields, record_fields, word_width
from gshw.pipeline import SCATTER_LEAD, TAG_LEAD, Pipeline
from gshw.plan import N_LOOPS
from gshw.registers import COUNTER_WIDTH, COUNTERS
from rtl_gen.activation import ActivationTables
from rtl_gen.buffers import GroupBuffer, RowBuffer
from rtl_gen.compute import Accumulators, AdderTree, MultiplierArray
from rtl_gen.delay import delay
from rtl_gen.gather import ArbitratedGather, ScheduledGather
from rtl_gen.layouts import (
    command_layout,
    load_layout,
    scratchpad_load_layout,
    step_layout,
)
from rtl_gen.library import place
from rtl_gen.load_register import LoadRegister
from rtl_gen.output import DrainControl, Requantiser, ScatterWriter
from rtl_gen.routing import BenesNetwork, Crossbar, DirectRouting
from rtl_gen.scratchpad import OutputBuffer, Scratchpad
from rtl_gen.sequencer import PositionLoops, SteppedAddress


class Engine(wiring.Component):
    """One gather/scatter engine.

    Parameters
    ----------
    config
        Its config.
    small
        No register between the loads and the memories, which lie close together: loads are
        written a cycle earlier. No copy of the command: its payload holds until ``done``.

    Members
    -------
    command
        Accepted when the engine is idle; refused on a foreign config hash or a range outside a
        buffer: it then does nothing but to set the error flag and to be done at once.
    load_scratchpad, load_group, load_record
        One row or word per cycle, at any time, written two cycles later; see
        :class:`Scratchpad` for the enables.
    read_request, read_response
        One row of the output buffer per cycle, at any time; the response may be stalled.
    busy
        From the cycle after a command is accepted until its last result is written.
    done
        One cycle, after ``busy`` falls. The next command is accepted from that cycle on; the
        counters are final in it, and the error flags show what the command did wrong.
    counter_*
        Of the last command; see :mod:`gshw.registers`.
    event_*
        What they count, for those who count over several commands.
    error_*
        Sticky until ``clear_errors``.
    config_hash
        First 32 bits of the config's hash.
    """

    def __init__(self, config: EngineConfig, *, small: bool = False) -> None:
        self.config = config
        self._small = small
        group_width = word_width(group_fields(config))
        record_width = word_width(record_fields(config))
        super().__init__(
            {
                "command": In(stream.Signature(command_layout(config))),
                "load_scratchpad": In(
                    stream.Signature(scratchpad_load_layout(config), always_ready=True)
                ),
                "load_group": In(
                    stream.Signature(
                        load_layout(config.group_address_width, group_width), always_ready=True
                    )
                ),
                "load_record": In(
                    stream.Signature(
                        load_layout(config.record_load_width, record_width), always_ready=True
                    )
                ),
                "read_request": In(stream.Signature(config.output_address_width)),
                "read_response": Out(stream.Signature(config.scratchpad_row_width)),
                "clear_errors": In(1),
                "busy": Out(1),
                "done": Out(1),
                "config_hash": Out(32),
                "error_config_hash": Out(1),
                "error_command": Out(1),
                "error_address": Out(1),
            }
            | {f"counter_{name}": Out(COUNTER_WIDTH) for name in COUNTERS}
            | {f"event_{name}": Out(1) for name in COUNTERS}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        pipeline = Pipeline(config)
        arbitrated = config.gather is Gather.ARBITRATED
        lanes = range(config.lanes)
        m.d.comb += self.config_hash.eq(config.hash32)

        # --- command -----------------------------------------------------------------------
        # Everything starts with an accepted command; one that turns out wrong is stopped two
        # cycles later, before its first group is issued.
        offered = self.command.payload
        current = Signal(command_layout(config), reset_less=True)
        accept, accepted, was_busy = Signal(), Signal(), Signal()
        m.d.comb += [
            self.command.ready.eq(~self.busy & ~was_busy),
            accept.eq(self.command.valid & self.command.ready),
        ]
        foreign, empty = Signal(reset_less=True), Signal(reset_less=True)
        has_tables, no_table = config.activation_tables > 0, Signal(reset_less=True)
        group_end = Signal(config.group_address_width + 2, reset_less=True)
        record_end = Signal(config.record_address_width + 2, reset_less=True)
        refused_hash, refused_range, refused = Signal(), Signal(), Signal()
        if self._small:
            m.d.comb += current.eq(offered)
        with m.If(accept):
            m.d.sync += [
                *([] if self._small else [current.eq(offered)]),
                group_end.eq(offered.group_base + offered.n_groups),
                record_end.eq(offered.record_base + offered.n_records),
            ]
        m.d.sync += [
            accepted.eq(accept),
            foreign.eq(offered.config_hash != config.hash32),
            empty.eq(offered.n_groups == 0),
            *([no_table.eq(offered.table > config.activation_tables)] if has_tables else []),
            refused_hash.eq(accepted & foreign),
            refused_range.eq(
                accepted
                & (
                    (empty | no_table if has_tables else empty)
                    | (group_end > config.group_buffer_depth)
                    | (record_end > config.row_buffer_depth)
                )
            ),
        ]
        m.d.comb += refused.eq(refused_hash | refused_range)

        # --- issue -------------------------------------------------------------------------
        groups = place(m, platform, "group_buffer", GroupBuffer(config))
        gather_type = ArbitratedGather if arbitrated else ScheduledGather
        gather = place(m, platform, "gather", gather_type(config))
        loops = place(m, platform, "loops", PositionLoops())
        read_base = place(m, platform, "read_base", SteppedAddress(config.address_width))
        wiring.connect(m, groups.head, gather.i)
        self._connect_load(m, platform, "load_group", groups.load)
        fetching = Signal()
        stop = Signal()
        with m.If(accept):
            m.d.sync += fetching.eq(1)
        with m.Elif(stop):
            m.d.sync += fetching.eq(0)
        m.d.comb += [
            groups.start.eq(accepted),
            groups.stop.eq(stop),
            gather.restart.eq(accepted & ~current.continues),
            groups.base.eq(current.group_base),
            groups.end_word.eq(group_end),
            loops.start.eq(accepted),
            loops.advance.eq(gather.pass_end),
            read_base.start.eq(accept),
            read_base.base.eq(offered.read_base),
            read_base.advance.eq(gather.pass_end),
            read_base.step.eq(loops.step),
            read_base.steps.eq(current.read_step),
            stop.eq((gather.pass_end & loops.last) | refused),
        ]
        m.d.comb += [loops.count_less_1[i].eq(current.count_less_1[i]) for i in range(N_LOOPS)]

        # --- gather ------------------------------------------------------------------------
        scratchpad = place(m, platform, "scratchpad", Scratchpad(config))
        self._connect_load(m, platform, "load_scratchpad", scratchpad.load)
        base = delay(m, read_base.address, pipeline.address - 1, "read_base")
        issued = delay(m, gather.tag.valid, pipeline.address, "issued", resets=True)
        offsets = gather.offset if arbitrated else groups.offset
        carries = Signal(config.lanes, reset_less=True)
        read_overflow = Signal()
        for b in lanes:
            address = Signal(config.address_width, name=f"read_address_{b}", reset_less=True)
            m.d.sync += Cat(address, carries[b]).eq(base + offsets[b])
            m.d.comb += scratchpad.read_address[b].eq(address)
        m.d.sync += read_overflow.eq(issued & carries.any())

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
        early = delay(m, gather.tag, pipeline.accumulate - TAG_LEAD, "tag", resets=True)
        tag = delay(m, early, TAG_LEAD, "late_tag", resets=True)
        m.d.comb += accumulators.tag.eq(early)
        if config.max_pooling:
            m.d.comb += accumulators.maximum.eq(current.maximum)

        # --- drain, requantise, scatter ------------------------------------------------------
        records = place(m, platform, "row_buffer", RowBuffer(config))
        drain = place(m, platform, "drain", DrainControl(config))
        scatter = place(m, platform, "scatter", ScatterWriter(config))
        tables = None
        if config.activation_tables:
            tables = place(m, platform, "activation_tables", ActivationTables(config))
            self._connect_records(m, platform, records.load, tables.load)
            m.d.comb += tables.select.eq(current.table)
        else:
            self._connect_load(m, platform, "load_record", records.load)
        wiring.connect(m, records.record, drain.i)
        m.d.comb += [
            records.start.eq(accepted),
            records.base.eq(current.record_base),
            records.end_word.eq(record_end),
            drain.tag.eq(tag),
            accumulators.shift.eq(drain.shift),
        ]
        latency = pipeline.drain - scatter.latency - SCATTER_LEAD
        # Columns follow each other by a cycle, and leave the requantisers together.
        selected = [delay(m, drain.record, pipeline.drain_select, "record")]
        for column in range(1, config.columns):
            selected.append(delay(m, selected[-1], 1, f"record_{column}"))
        for d in range(config.drain_rows):
            before = None
            for column in range(config.columns):
                index = d * config.columns + column
                unit = Requantiser(
                    config.accumulator_width, config.activation_width, follows=column > 0
                )
                place(m, platform, f"requantiser_{d}_{column}", unit)
                m.d.comb += [
                    unit.i.eq(accumulators.o[index]),
                    unit.bias.eq(selected[column].bias[d]),
                    unit.multiplier.eq(selected[column].multiplier[d]),
                    unit.select.eq(before.passed_on)
                    if before
                    else unit.shift.eq(selected[0].shift[d]),
                    unit.low.eq(current.low),
                    unit.high.eq(current.high),
                ]
                before = unit
                late = delay(m, unit.o, config.columns - 1 - column, f"code_{index}")
                if tables is None:
                    m.d.comb += scatter.code[index].eq(late)
                else:
                    m.d.comb += tables.i[index].eq(late), scatter.code[index].eq(tables.o[index])
            row = delay(m, drain.record.row[d], latency, f"row_{d}")
            m.d.comb += scatter.row[d].eq(row)
        valid = Signal(config.drain_rows)
        m.d.comb += valid.eq(Mux(drain.active, drain.record.valid.as_value(), 0))
        m.d.comb += scatter.valid.eq(delay(m, valid, latency, "row_valid", resets=True))

        # The loops have gone on to later positions when a bundle drains: each group takes along
        # which loop moves after it, and the write base makes the same moves behind the drain.
        capture = Signal()
        drain_step = Signal(step_layout(), reset_less=True)
        m.d.comb += capture.eq(tag.valid & (tag.drain != 0))
        group_step = delay(m, loops.step, pipeline.accumulate, "step")
        with m.If(capture):
            m.d.sync += drain_step.eq(group_step)
        write_base = place(m, platform, "write_base", SteppedAddress(config.output_address_width))
        m.d.comb += [
            write_base.start.eq(accept),
            write_base.base.eq(offered.write_base),
            write_base.advance.eq(delay(m, drain.pass_end, latency, "pass_end", resets=True)),
            write_base.step.eq(delay(m, drain_step, latency, "drain_step")),
            write_base.steps.eq(current.write_step),
            scatter.base.eq(write_base.address),
        ]

        # --- output ------------------------------------------------------------------------
        output = place(m, platform, "output_buffer", OutputBuffer(config))
        wiring.connect(m, wiring.flipped(self.read_request), output.request)
        wiring.connect(m, output.response, wiring.flipped(self.read_response))
        for b in lanes:
            m.d.comb += [
                output.write_enable[b].eq(scatter.enable[b]),
                output.write_address[b].eq(scatter.address[b]),
                output.write_data[b].eq(scatter.data[b]),
            ]

        # --- status ------------------------------------------------------------------------
        # A register of its own: what may be high in the next cycle, said by the registers of
        # this one. Issue implies fetching, and the end of a drain an active one.
        in_flight = self._recent(m, gather.tag.valid, pipeline.accumulate - 1, "group_flight")
        in_output = self._recent(m, drain.active, pipeline.drain - 1, "row_flight")
        m.d.sync += [
            self.busy.eq(accept | fetching | in_flight | capture | drain.active | in_output),
            was_busy.eq(self.busy),
            self.done.eq(was_busy & ~self.busy),
        ]
        self._count(m, accepted, was_busy, gather, drain)
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

    def _connect_load(self, m: Module, platform, name: str, target) -> None:
        load = getattr(self, name)
        if self._small:
            wiring.connect(m, wiring.flipped(load), target)
            return
        register = place(m, platform, f"{name}_register", LoadRegister(load.payload.shape()))
        wiring.connect(m, wiring.flipped(load), register.i)
        wiring.connect(m, register.o, target)

    def _connect_records(self, m: Module, platform, records, tables) -> None:
        """Loads of records, to the row buffer or to the activation tables by their address."""
        load = self.load_record
        if self._small:
            source = load
        else:
            register = LoadRegister(load.payload.shape())
            source = place(m, platform, "load_record_register", register).o
            wiring.connect(m, wiring.flipped(load), register.i)
        payload = source.payload
        for_tables = payload.address[-1]
        m.d.comb += [
            records.valid.eq(source.valid & ~for_tables),
            records.payload.address.eq(payload.address),
            records.payload.data.eq(payload.data),
            tables.valid.eq(source.valid & for_tables),
            tables.payload.address.eq(payload.address),
            tables.payload.data.eq(payload.data),
        ]

    def _recent(self, m: Module, event, n_cycles: int, name: str):
        """High for the ``n_cycles`` cycles after each event."""
        flight = Signal(n_cycles, name=name)
        m.d.sync += flight.eq(Cat(event, flight)[:n_cycles])
        return flight.any()

    def _count(self, m: Module, clear, was_busy, gather, drain) -> None:
        """Count events a cycle late, so that each counter sees registers only."""
        events = {
            "groups": gather.tag.valid & ~gather.replayed,
            "stalls": gather.stalled,
            "drains": drain.active,
            "conflicts": gather.conflicted,
            "replays": gather.replayed,
        }
        late = {name: delay(m, event, 1, name, resets=True) for name, event in events.items()}
        late["cycles"] = was_busy
        for name in COUNTERS:
            m.d.comb += getattr(self, f"event_{name}").eq(late[name])
            counter = getattr(self, f"counter_{name}")
            with m.If(clear):
                m.d.sync += counter.eq(0)
            with m.Elif(late[name]):
                m.d.sync += counter.eq(counter + 1)
