"""The processor: fetch, three queues, three units and the engine, on abstract memory ports."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from gshw.program import Unit, optional_fields
from gshw.registers import COUNTERS, PROGRAM_COUNTERS, PROGRAM_ERRORS, WIDE_COUNTERS
from rtl_gen.axi import beat_layout, request_layout
from rtl_gen.command import ComputeUnit
from rtl_gen.delay import delay
from rtl_gen.engine import Engine
from rtl_gen.errors import CODE_WIDTH, ErrorLog
from rtl_gen.fetch import UNITS, Fetch
from rtl_gen.library import place
from rtl_gen.load import LoadUnit
from rtl_gen.queue import UnitQueue
from rtl_gen.store import StoreUnit
from rtl_gen.supervisor import Supervisor

STOP_CYCLES = 4
"""Until a stop has reached everybody, so that idle movers stay idle."""
ERROR_CYCLES = 2
"""From the last moment that a program seems to run well to the end of it."""


class Processor(wiring.Component):
    """Runs programs.

    Timing. ``start`` in cycle s - 1, if ``ready``, makes ``busy`` high from s + 1 on, in which the
    request for the header is valid. When the last unit's ``done`` is in cycle e (a store's: after
    its last acknowledgement), ``busy`` is high up to e + 4 and ``done`` is high in e + 5;
    ``start`` may be high in the same cycle. So the counter ``cycles`` is e + 4 - s. Between:
    :class:`Fetch`, :class:`UnitQueue`, and each unit.

    After an error (``failed``) everything stops: nothing is asked of the memory any more, data are
    dropped, and ``busy`` falls when the movers are idle. Only a reset leads out of it.

    Parameters
    ----------
    config
        Of the engine and the bus.
    interleaved
        The memory is a stream: see :class:`Fetch`.
    small
        Fewer registers and no watchdog: for a slow memory and a slow clock. The timing of
        instructions is another one.

    Members
    -------
    start, ready
        ``start`` is ignored while not ``ready``.
    halt
        Stop everything, without an error; keep it until the reset.
    stop
        To the movers: drop what you hold.
    program_address, watchdog_cycles
        Settings; see :mod:`gshw.register_map`.
    fetch_*, load_*, store_*
        Clients of the memory; ``store_request_last`` with the last run of a store.
    reader_idle, writer_idle, read_beat, write_beat
        Of the movers.
    read_error, read_out_of_range, read_error_address, write_*
        Of the movers; pulses.
    read_error_of_load
        The read was one of load, not of fetch.
    stream_error
        The input stream ended too early.
    busy, done, failed
        A program runs; has ended without an error (one cycle); has failed.
    fetch_busy, load_busy, compute_busy, store_busy
        Who works, while ``busy``.
    errors, first_error_*
        See :class:`ErrorLog`.
    event_*
        What the counters of :mod:`gshw.registers` count, a cycle or two later, while ``busy``.
    """

    def __init__(self, config: Config, *, interleaved: bool = False, small: bool = False) -> None:
        self.config = config
        self._interleaved = interleaved
        self._small = small
        bus = config.bus
        request = stream.Signature(request_layout(bus))
        beats = stream.Signature(beat_layout(bus))
        address = bus.address_width
        super().__init__(
            {
                "start": In(1),
                "ready": Out(1),
                "halt": In(1),
                "stop": Out(1),
                "program_address": In(address),
                "watchdog_cycles": In(32),
                "fetch_request": Out(request),
                "fetch_data": In(beats),
                "load_request": Out(request),
                "load_data": In(beats),
                "store_request": Out(request),
                "store_request_last": Out(1),
                "store_data": Out(beats),
                "reader_idle": In(1),
                "writer_idle": In(1),
                "read_beat": In(1),
                "write_beat": In(1),
                "read_error": In(1),
                "read_out_of_range": In(1),
                "read_error_address": In(address),
                "read_error_of_load": In(1),
                "write_error": In(1),
                "write_out_of_range": In(1),
                "write_error_address": In(address),
                "stream_error": In(1),
                "busy": Out(1),
                "done": Out(1),
                "failed": Out(1),
                "fetch_busy": Out(1),
                "load_busy": Out(1),
                "compute_busy": Out(1),
                "store_busy": Out(1),
                "errors": Out(len(PROGRAM_ERRORS)),
                "first_error_code": Out(CODE_WIDTH),
                "first_error_index": Out(16),
                "first_error_address": Out(address),
            }
            | {f"event_{name}": Out(1) for name in (*WIDE_COUNTERS, *PROGRAM_COUNTERS)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config

        # --- fetch and queues ----------------------------------------------------------------
        small = self._small
        fetch = Fetch(config, interleaved=self._interleaved, small=small)
        place(m, platform, "fetch", fetch)
        queues = {
            unit: place(
                m,
                platform,
                f"{unit.value}_queue",
                UnitQueue(unit, small=small, optional=optional_fields(config.engine)),
            )
            for unit in UNITS
        }
        load_queue, compute_queue, store_queue = queues.values()
        wiring.connect(m, fetch.request, wiring.flipped(self.fetch_request))
        wiring.connect(m, wiring.flipped(self.fetch_data), fetch.data)
        # A register of its own: a start reaches far.
        begins = Signal()
        m.d.sync += begins.eq(self.start & self.ready)
        m.d.comb += [
            fetch.start.eq(begins),
            fetch.program_address.eq(self.program_address),
            fetch.halt.eq(self.stop),
            fetch.room.eq(Cat(queue.room for queue in queues.values())),
            fetch.load_drained.eq(load_queue.drained),
        ]
        for number, queue in enumerate(queues.values()):
            m.d.comb += [
                queue.word.eq(fetch.word),
                queue.write.eq(fetch.write[number]),
                queue.commit.eq(fetch.commit[number]),
                queue.halt.eq(self.stop),
                queue.clear.eq(begins),
            ]
        for before, after in ((load_queue, compute_queue), (compute_queue, store_queue)):
            m.d.comb += [
                after.previous_push.eq(before.push_next),
                before.next_push.eq(after.push_previous),
            ]

        # --- units and engine ----------------------------------------------------------------
        load = place(m, platform, "load", LoadUnit(config, held=small))
        compute = place(m, platform, "compute", ComputeUnit(config))
        store = place(m, platform, "store", StoreUnit(config, small=small))
        engine = place(m, platform, "engine", Engine(config.engine, small=small))
        units = {Unit.LOAD: load, Unit.COMPUTE: compute, Unit.STORE: store}
        for kind, unit in units.items():
            wiring.connect(m, queues[kind].o, unit.instruction)
            m.d.comb += [queues[kind].done.eq(unit.done), unit.halt.eq(self.stop)]
        wiring.connect(m, load.request, wiring.flipped(self.load_request))
        wiring.connect(m, wiring.flipped(self.load_data), load.data)
        wiring.connect(m, store.request, wiring.flipped(self.store_request))
        wiring.connect(m, store.data, wiring.flipped(self.store_data))
        wiring.connect(m, load.load_scratchpad, engine.load_scratchpad)
        wiring.connect(m, load.load_group, engine.load_group)
        wiring.connect(m, load.load_record, engine.load_record)
        wiring.connect(m, store.read_request, engine.read_request)
        wiring.connect(m, engine.read_response, store.read_response)
        wiring.connect(m, compute.command, engine.command)
        m.d.comb += [
            compute.engine_done.eq(engine.done),
            store.writer_idle.eq(self.writer_idle),
            self.store_request_last.eq(store.request_last),
        ]

        # --- start and end -------------------------------------------------------------------
        ended = Signal()
        stopped = Signal()
        movers_idle = Signal()
        drained = Cat(queue.drained for queue in queues.values()).all()
        finishes = self.busy & fetch.finished & drained
        # The last instruction's tokens are in the counters a cycle after it is out of its queue.
        settled = delay(m, finishes, 1, "settled", resets=True)
        # Its own errors come up to ERROR_CYCLES after it is done.
        finished = finishes & delay(m, settled, ERROR_CYCLES - 1, "finished", resets=True)
        m.d.comb += self.ready.eq(~(self.busy | begins | self.stop | self.failed | self.halt))
        m.d.sync += [
            movers_idle.eq(self.reader_idle & self.writer_idle),
            ended.eq(self.busy & ~ended & finished),
            self.stop.eq(self.failed | self.halt),
            stopped.eq(delay(m, self.stop, STOP_CYCLES, "stop", resets=True) & movers_idle),
            self.done.eq(ended & ~self.stop & ~self.failed),
        ]
        with m.If(begins):
            m.d.sync += self.busy.eq(1)
        with m.Elif((ended & ~self.failed) | stopped):
            m.d.sync += self.busy.eq(0)

        self._supervise(m, platform, fetch, queues, units, engine, settled)
        self._count(m, queues, engine)
        return m

    def _supervise(self, m: Module, platform, fetch, queues, units, engine, settled) -> None:
        """Errors, deadlock, watchdog and the busy flags."""
        log = place(m, platform, "errors", ErrorLog(self.config.bus.address_width))
        supervisor = place(m, platform, "supervisor", Supervisor(watchdog=not self._small))
        load, compute, store = units.values()
        quiet = Cat(queue.waiting | queue.drained for queue in queues.values()).all()
        waiting = Cat(queue.waiting for queue in queues.values()).any()
        moved = [unit.done for unit in units.values()]
        moved += [fetch.progress, self.read_beat, self.write_beat, load.load_scratchpad.valid]
        moved += [engine.event_groups, engine.event_drains]
        events = {
            "header": fetch.error_header,
            "config_hash": fetch.error_config_hash,
            "instruction": fetch.error_instruction,
            "tokens": log.tokens_of.any(),
            "load": load.error,
            "store": store.error,
            "command": compute.error | engine.error_command | engine.error_config_hash,
            "address": engine.error_address,
            "read_bus": self.read_error,
            "write_bus": self.write_error,
            "read_range": self.read_out_of_range,
            "write_range": self.write_out_of_range,
            "stream": self.stream_error,
            "deadlock": supervisor.deadlock,
            "watchdog": supervisor.watchdog,
        }
        m.d.comb += [getattr(log, f"event_{name}").eq(events[name]) for name in PROGRAM_ERRORS]
        m.d.comb += [
            supervisor.watch.eq(self.busy & ~self.stop & ~self.failed),
            supervisor.stuck.eq(quiet & waiting & (fetch.blocked | fetch.finished)),
            supervisor.progress.eq(Cat(moved).any()),
            supervisor.watchdog_cycles.eq(self.watchdog_cycles),
            log.fetch_index.eq(fetch.index),
            log.read_of_load.eq(self.read_error_of_load),
            log.read_address.eq(self.read_error_address),
            log.write_address.eq(self.write_error_address),
            self.failed.eq(log.any),
            self.errors.eq(log.flags),
            self.first_error_code.eq(log.code),
            self.first_error_index.eq(log.index),
            self.first_error_address.eq(log.address),
            self.fetch_busy.eq(self.busy & ~fetch.finished),
        ]
        for number, (unit, queue) in enumerate(queues.items()):
            m.d.comb += [
                getattr(log, f"{unit.value}_index").eq(queue.index),
                getattr(self, f"{unit.value}_busy").eq(self.busy & queue.busy),
            ]
            m.d.sync += log.standing[number].eq(queue.busy | (supervisor.stuck & queue.waiting))
        # Tokens that were lost, or are left at the end: by who gave them.
        load_queue, compute_queue, store_queue = queues.values()
        given = (
            ((compute_queue, "previous"),),
            ((load_queue, "next"), (store_queue, "previous")),
            ((compute_queue, "next"),),
        )
        for number, taken in enumerate(given):
            too_many = [
                getattr(queue, f"overflow_{side}") | (settled & getattr(queue, f"has_{side}"))
                for queue, side in taken
            ]
            m.d.comb += log.tokens_of[number].eq(Cat(too_many).any())

    def _count(self, m: Module, queues, engine) -> None:
        """Events for the counters, each in a register."""
        load, compute, store = queues.values()
        events = {
            "cycles": self.busy,
            "bytes_read": self.read_beat,
            "bytes_written": self.write_beat,
            "load_busy": load.busy,
            "compute_busy": compute.busy,
            "store_busy": store.busy,
            "compute_waits_load": compute.waits_previous,
            "compute_waits_store": compute.waits_next,
            "load_waits_compute": load.waits_next,
            "store_waits_compute": store.waits_previous,
            "load_waits_memory": self.load_data.ready & ~self.load_data.valid,
            "store_waits_memory": self.store_data.valid & ~self.store_data.ready,
        }
        # After an error units keep what they had in flight, and the engine ends its command.
        m.d.sync += [
            getattr(self, f"event_{name}").eq(self.busy & event) for name, event in events.items()
        ]
        m.d.comb += [
            getattr(self, f"event_{name}").eq(self.busy & getattr(engine, f"event_{name}"))
            for name in COUNTERS
            if name in PROGRAM_COUNTERS
        ]
