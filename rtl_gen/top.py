"""The core with flat ports: what the Verilog module ``gshw_core`` offers, and its description."""

from amaranth.hdl import Module, Shape, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Flow, In, Out

from gshw.config import EngineConfig
from gshw.package.interface import Port
from gshw.registers import COUNTER_WIDTH, COUNTERS, ERRORS
from rtl_gen.engine import Engine
from rtl_gen.library import place

TOP_NAME = "gshw_core"

_STREAMS = {
    "command": "runs the engine over a tile; accepted when idle",
    "load_scratchpad": "fills elements of one scratchpad row, at any time",
    "load_group": "fills one group word, at any time",
    "load_record": "fills one row-parameter record, at any time",
    "read_request": "asks for one row of the output buffer, at any time",
    "read_response": "the rows asked for, in order",
}

_FIELDS = {
    "command_config_hash": "must equal config_hash, or the command is refused",
    "command_group_base": "first group word",
    "command_n_groups": "group words per position, at least 1",
    "command_record_base": "first row-parameter record",
    "command_n_records": "records per position; 0 if no bundle ends in this command",
    "command_read_base": "scratchpad address of the first position's window",
    "command_write_base": "output buffer address of the first position's results",
    "command_count_less_1": "positions along loop {index} (0 is innermost), less 1",
    "command_read_step": "added to the read address when loop {index} advances",
    "command_write_step": "added to the write address when loop {index} advances",
    "command_signed_input": "1: activations are two's complement",
    "command_low": "lowest output code, signed",
    "command_high": "highest output code, signed",
    "command_continues": "1: the first bundle goes on from the command before",
    "command_maximum": "1: rows keep their largest product instead of the sum",
    "command_table": "0: results as they are; n: through activation table n - 1",
    "load_scratchpad_address": "word address in every bank",
    "load_scratchpad_channel_enable": "bit bank * block + channel: write this channel of the bank",
    "load_scratchpad_column_enable": "bit v: write column v of the enabled channels",
    "load_scratchpad_data": "one word per bank, bank 0 in the lowest bits",
    "load_group_address": "entry of the group buffer",
    "load_group_data": "group word, see the format description",
    "load_record_address": "entry of the row buffer",
    "load_record_data": "row-parameter record, see the format description",
    "read_request_data": "word address in every bank",
    "read_response_data": "one word per bank, bank 0 in the lowest bits",
}

_PLAIN = {
    "clear_errors": "1 clears the error flags",
    "busy": "from the cycle after a command is accepted until its last result is written",
    "done": "one cycle, after busy falls",
    "config_hash": "first 32 bits of the SHA-256 of the config's canonical form",
}


def _flat_fields(name: str, value) -> list[tuple[str, Value]]:
    """Leaves of a payload with their port names; arrays count up, scalars are ``_data``."""
    if isinstance(value, data.View):
        layout = value.shape()
        leaves = []
        for key, _ in layout:
            leaves += _flat_fields(f"{name}_{key}", value[key])
        return leaves
    return [(name, Value.cast(value))]


class Core(wiring.Component):
    """:class:`Engine` behind flat ports: ``{stream}_valid``, ``_ready`` and one per field.

    Latency: none added.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._engine = Engine(config)
        self._links: list[tuple[str, bool, Value]] = []
        self.ports: list[Port] = []
        members = {}
        for name, member in self._engine.signature.members.items():
            if name.startswith("event_"):
                continue
            inner = getattr(self._engine, name)
            outward = member.flow is Flow.Out
            if member.is_signature:
                self._add_stream(members, name, inner, outward)
            else:
                self._add(members, name, outward, Value.cast(inner), self._describe_plain(name))
        super().__init__(members)

    def _describe_plain(self, name: str) -> str:
        if name.startswith("counter_"):
            return f"{COUNTERS[name.removeprefix('counter_')]} ({COUNTER_WIDTH} bits, wraps)"
        if name.startswith("error_"):
            return f"sticky: {ERRORS[name.removeprefix('error_')]}"
        return _PLAIN[name]

    def _add(self, members: dict, name: str, outward: bool, inner: Value, text: str) -> None:
        shape = Shape.cast(inner.shape())
        members[name] = Out(shape) if outward else In(shape)
        self._links.append((name, outward, inner))
        direction = "output" if outward else "input"
        self.ports.append(Port(name, direction, shape.width, text))

    def _add_stream(self, members: dict, name: str, inner, outward: bool) -> None:
        text = _STREAMS[name]
        self._add(members, f"{name}_valid", outward, inner.valid, text)
        ready = inner.ready
        self._add(members, f"{name}_ready", not outward, Value.cast(ready), f"handshake of {name}")
        payload = inner.payload
        scalar = not isinstance(payload, data.View)
        fields = [(f"{name}_data", payload)] if scalar else _flat_fields(name, payload)
        for port, value in fields:
            stem, _, index = port.rpartition("_")
            description = _FIELDS.get(port) or _FIELDS[stem].format(index=index)
            self._add(members, port, outward, Value.cast(value), description)

    def elaborate(self, platform) -> Module:
        m = Module()
        place(m, platform, "engine", self._engine)
        for name, outward, inner in self._links:
            port = getattr(self, name)
            m.d.comb += port.eq(inner) if outward else inner.eq(port)
        return m
