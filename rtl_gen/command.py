"""The compute unit: instructions become commands of the engine."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from gshw.config import Config
from gshw.plan import N_LOOPS
from gshw.program import Opcode, optional_fields
from rtl_gen.instructions import run_instruction_layout
from rtl_gen.layouts import command_layout


class ComputeUnit(wiring.Component):
    """Runs one instruction after the other on the engine.

    Latency: a ``run`` offered in cycle t is at ``command`` in t + 1, so one that waits is taken in
    the cycle in which the engine is ready; ``done`` is the engine's. A ``sync`` offered in cycle t,
    with nothing running, is taken in t + 1 and done in t + 2.

    Members
    -------
    instruction
        Its payload must hold until taken.
    command, engine_done
        Of the engine.
    done
        One cycle per instruction, in order.
    error
        A base or a count is wider than the engine's; the instruction is not taken. High from when
        all before it is done, until ``halt``.
    halt
        Start nothing new.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        instruction = run_instruction_layout(optional_fields(config.engine))
        super().__init__(
            {
                "instruction": In(stream.Signature(instruction)),
                "command": Out(stream.Signature(command_layout(config.engine))),
                "engine_done": In(1),
                "done": Out(1),
                "error": Out(1),
                "halt": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        fields, command = self.instruction.payload, self.command.payload
        m.d.comb += command.config_hash.eq(self.config.engine.hash32)
        names = ("group_base", "n_groups", "record_base", "n_records", "read_base", "write_base")
        optional = optional_fields(self.config.engine)
        spare = []
        for name in (*names, *(name for name in optional if name == "table")):
            target = getattr(command, name)
            source = getattr(fields, name)
            m.d.comb += target.eq(source)
            spare.append(source[len(target) :])
        flags = [name for name in optional if name != "table"]
        for name in ("signed_input", "continues", "low", "high", *flags):
            m.d.comb += getattr(command, name).eq(getattr(fields, name))
        for i in range(N_LOOPS):
            m.d.comb += [
                command.count_less_1[i].eq(fields[f"count_less_1_{i}"]),
                command.read_step[i].eq(fields[f"read_step_{i}"]),
                command.write_step[i].eq(fields[f"write_step_{i}"]),
            ]

        checked, legal, is_run = Signal(), Signal(), Signal()
        taken, idle, synced = Signal(), Signal(init=1), Signal()
        m.d.comb += [
            self.command.valid.eq(checked & is_run & legal),
            self.instruction.ready.eq(
                checked & ((is_run & legal & self.command.ready) | (~is_run & idle))
            ),
            taken.eq(self.instruction.valid & self.instruction.ready),
            self.done.eq(self.engine_done | synced),
        ]
        m.d.sync += [
            checked.eq(self.instruction.valid & ~taken & ~self.halt),
            legal.eq(~Cat(spare).any()),
            is_run.eq(fields.opcode == Opcode.RUN),
            synced.eq(taken & ~is_run),
            self.error.eq(checked & is_run & ~legal & idle),
        ]
        with m.If(taken & is_run):
            m.d.sync += idle.eq(0)
        with m.Elif(self.engine_done):
            m.d.sync += idle.eq(1)
        return m
