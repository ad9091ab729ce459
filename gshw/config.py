"""The TOML description of one engine: read, checked, and given derived values.

One :class:`EngineConfig` goes unchanged to the pruner, the encoder, the golden model, the RTL
generator and the driver; no other place derives a width or a count.
"""

import dataclasses
import enum
import hashlib
import json
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gshw.errors import GshwError

OPERAND_WIDTHS = (4, 8, 16)
MULTIPLIER_WIDTH = 16
SHIFT_WIDTH = 6
TABLE_WORD_CODES = 4
"""Entries of an activation table that one word of a load holds."""


class Routing(enum.Enum):
    """How bank words reach the lanes."""

    DIRECT = "direct"
    CROSSBAR = "crossbar"
    BENES = "benes"


class Gather(enum.Enum):
    """Who resolves bank conflicts: the encoder offline, or an arbiter at run time."""

    SCHEDULED = "scheduled"
    ARBITRATED = "arbitrated"


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _require(condition: bool, key: str, rule: str, value: object) -> None:
    if not condition:
        raise GshwError(f"{key} {rule}, not {value}")


def _require_power_of_two(key: str, value: int, low: int, high: int) -> None:
    _require(
        _is_power_of_two(value) and low <= value <= high,
        key,
        f"must be a power of two from {low} to {high}",
        value,
    )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine: everything that decides the pattern, the artefacts and the Verilog.

    Parameters
    ----------
    lanes
        Multiplier slots per column and block channel, and scratchpad banks: B. Power of two, 2..64.
    rows
        Output rows that one group touches: R. A power of two that divides ``lanes``.
    bank_width
        Bits of one bank word: ``block * columns * activation_width``, at most 512.
    bank_depth
        Words per scratchpad bank, a power of two, 16..65536.
    output_depth
        Words per bank of the output buffer, a power of two, 16..65536.
    columns
        Independent activation streams computed with the same weights: V, 1..16.
    activation_width, weight_width
        Bits, each 4, 8 or 16.
    accumulator_width
        Bits, 16..32. The encoder refuses a layer that could overflow it.
    group_buffer_depth, row_buffer_depth
        Group words and row-parameter records that fit on chip, 2..65536.
    drain_rows
        Rows requantised per cycle: D, a power of two, at most ``rows``.
    routing, gather
        See the enums; ``direct`` needs ``rows = 1``, ``arbitrated`` needs ``crossbar``.
    max_pooling
        Whether the accumulators can keep the largest product instead of the sum.
    activation_tables
        Tables of ``2**activation_width`` codes that results may be looked up in: 0, 1, 2, 4 or 8.

    Raises
    ------
    GshwError
        Naming the key, the rule and the value.
    """

    lanes: int
    rows: int
    bank_width: int
    bank_depth: int = 1024
    output_depth: int = 1024
    columns: int = 1
    activation_width: int = 8
    weight_width: int = 8
    accumulator_width: int = 32
    group_buffer_depth: int = 1024
    row_buffer_depth: int = 512
    drain_rows: int = 1
    routing: Routing = Routing.BENES
    gather: Gather = Gather.SCHEDULED
    max_pooling: bool = False
    activation_tables: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "routing":
                _require(isinstance(value, Routing), field.name, "must be a Routing", value)
            elif field.name == "gather":
                _require(isinstance(value, Gather), field.name, "must be a Gather", value)
            elif field.name == "max_pooling":
                _require(isinstance(value, bool), field.name, "must be true or false", value)
            elif not isinstance(value, int) or isinstance(value, bool):
                raise GshwError(f"{field.name} must be an integer, not {value!r}")
        _require_power_of_two("lanes", self.lanes, 2, 64)
        _require(
            _is_power_of_two(self.rows) and self.rows <= self.lanes,
            "rows",
            f"must be a power of two that divides lanes = {self.lanes}",
            self.rows,
        )
        for key in ("bank_depth", "output_depth"):
            _require_power_of_two(key, getattr(self, key), 16, 65536)
        _require(1 <= self.columns <= 16, "columns", "must be from 1 to 16", self.columns)
        for key in ("activation_width", "weight_width"):
            _require(
                getattr(self, key) in OPERAND_WIDTHS, key, "must be 4, 8 or 16", getattr(self, key)
            )
        channel_width = self.columns * self.activation_width
        _require(
            self.bank_width % channel_width == 0
            and _is_power_of_two(self.bank_width // channel_width)
            and self.bank_width <= 512,
            "bank_width",
            "must be columns * activation_width times a power of two (the block), at most 512: "
            f"a power-of-two multiple of {channel_width}",
            self.bank_width,
        )
        low = max(16, self.activation_width + self.weight_width)
        _require(
            low <= self.accumulator_width <= 32,
            "accumulator_width",
            f"must be from {low} (16, or one whole product) to 32",
            self.accumulator_width,
        )
        for key in ("group_buffer_depth", "row_buffer_depth"):
            _require(
                2 <= getattr(self, key) <= 65536, key, "must be from 2 to 65536", getattr(self, key)
            )
        _require(
            _is_power_of_two(self.drain_rows) and self.drain_rows <= self.rows,
            "drain_rows",
            f"must be a power of two that is at most rows = {self.rows}",
            self.drain_rows,
        )
        _require(
            self.routing is not Routing.DIRECT or self.rows == 1,
            "routing",
            "may be 'direct' only with rows = 1 (a horizontal engine)",
            f"'direct' with rows = {self.rows}",
        )
        _require(
            self.gather is not Gather.ARBITRATED or self.routing is Routing.CROSSBAR,
            "gather",
            "may be 'arbitrated' only with routing = 'crossbar' (bank numbers known at run time)",
            f"'arbitrated' with routing = '{self.routing.value}'",
        )
        _require(
            self.activation_tables in (0, 1, 2, 4, 8),
            "activation_tables",
            "must be 0, 1, 2, 4 or 8",
            self.activation_tables,
        )
        if self.activation_tables:
            _require(
                self.activation_width <= 8,
                "activation_tables",
                f"must be 0 with activation_width = {self.activation_width}",
                self.activation_tables,
            )
            _require(
                self.row_buffer_depth < 32768,
                "row_buffer_depth",
                "must be below 32768 with activation_tables",
                self.row_buffer_depth,
            )

    # --- derived -----------------------------------------------------------------------------

    @property
    def block(self) -> int:
        """Consecutive input channels in one bank word: C."""
        return self.bank_width // (self.columns * self.activation_width)

    @property
    def lanes_per_row(self) -> int:
        """Lanes that feed one output row: k of GS(B, k)."""
        return self.lanes // self.rows

    @property
    def log2_lanes(self) -> int:
        return self.lanes.bit_length() - 1

    @property
    def log2_block(self) -> int:
        return self.block.bit_length() - 1

    @property
    def address_width(self) -> int:
        """Bits of a word address within a scratchpad bank."""
        return self.bank_depth.bit_length() - 1

    @property
    def output_address_width(self) -> int:
        """Bits of a word address within a bank of the output buffer."""
        return self.output_depth.bit_length() - 1

    @property
    def row_width(self) -> int:
        """Bits of an output-row number: channel in the word, bank, word offset."""
        return self.log2_block + self.log2_lanes + self.output_address_width

    @property
    def drain_width(self) -> int:
        """Bits of a group's drain count: 0 (bundle goes on) to ``rows`` (one row per cycle)."""
        return self.rows.bit_length()

    @property
    def group_address_width(self) -> int:
        return (self.group_buffer_depth - 1).bit_length()

    @property
    def record_address_width(self) -> int:
        return (self.row_buffer_depth - 1).bit_length()

    @property
    def table_words(self) -> int:
        """Words of a load that hold one activation table."""
        return (1 << self.activation_width) // TABLE_WORD_CODES

    @property
    def table_width(self) -> int:
        """Bits of the number of an activation table, 0 being none."""
        return self.activation_tables.bit_length()

    @property
    def table_base(self) -> int:
        """Where loads of records go to the activation tables: their first word's address.

        A power of two, above the row buffer's depth: a run of records cannot reach it.
        """
        last = self.activation_tables * self.table_words - 1
        return 1 << max(self.row_buffer_depth.bit_length(), last.bit_length())

    @property
    def record_load_width(self) -> int:
        """Bits of an address that records are loaded to; the highest one names the tables."""
        if not self.activation_tables:
            return self.record_address_width
        return self.table_base.bit_length()

    @property
    def record_load_depth(self) -> int:
        """Addresses that records are loaded to: the row buffer's, from the base on the tables'."""
        if not self.activation_tables:
            return self.row_buffer_depth
        return self.table_base + self.activation_tables * self.table_words

    @property
    def channels_per_row(self) -> int:
        """Channels in one scratchpad row (one word of every bank): B * C."""
        return self.lanes * self.block

    @property
    def scratchpad_row_width(self) -> int:
        """Bits of one scratchpad row."""
        return self.lanes * self.bank_width

    @property
    def macs_per_cycle(self) -> int:
        return self.lanes * self.block * self.columns

    @property
    def n_switches(self) -> int:
        """Two-by-two switches of the permutation network over the lanes: B log2 B - B + 1."""
        return self.lanes * (self.log2_lanes - 1) + 1

    @property
    def max_weight(self) -> int:
        """Largest weight magnitude (symmetric range)."""
        return (1 << (self.weight_width - 1)) - 1

    def activation_range(self, signed: bool) -> tuple[int, int]:
        """Lowest and highest activation code, signed or unsigned."""
        if signed:
            half = 1 << (self.activation_width - 1)
            return -half, half - 1
        return 0, (1 << self.activation_width) - 1

    @property
    def pattern_name(self) -> str:
        """The pattern in the paper's notation, for example ``GS(16, 1)``."""
        suffix = f" with 1x{self.block} blocks" if self.block > 1 else ""
        return f"GS({self.lanes}, {self.lanes_per_row}){suffix}"

    # --- canonical form ----------------------------------------------------------------------

    def canonical(self) -> dict[str, Any]:
        """Every key with its TOML value, defaults filled in, in declaration order.

        ``max_pooling`` and ``activation_tables`` are there only where they are true or not 0, so
        that engines without them keep their hash.
        """
        return {
            field.name: value.value if isinstance(value, enum.Enum) else value
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
            if value is not False and (field.name, value) != ("activation_tables", 0)
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the canonical form; equal iff the engines are equal."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def hash32(self) -> int:
        """First 32 bits of :attr:`hash`: the hardware's read-only identity."""
        return int(self.hash[:8], 16)


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """Where the engine is meant to run. It does not change what the engine computes.

    Parameters
    ----------
    device
        FPGA name, free text until a synthesis command reads it.
    clock_mhz
        Clock goal in MHz, 1..1000.
    """

    device: str = "ecp5-85k"
    clock_mhz: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not self.device:
            raise GshwError(f"device must be a non-empty string, not {self.device!r}")
        if isinstance(self.clock_mhz, bool) or not isinstance(self.clock_mhz, int):
            raise GshwError(f"clock_mhz must be an integer, not {self.clock_mhz!r}")
        _require(1 <= self.clock_mhz <= 1000, "clock_mhz", "must be from 1 to 1000", self.clock_mhz)


@dataclass(frozen=True, kw_only=True)
class BusConfig:
    """How the core reaches memory. It changes neither what the engine computes nor the programs.

    Parameters
    ----------
    data_width
        Bits of the AXI4 or AXI4-Stream data, a power of two, 32..512.
    address_width
        Bits of a byte address, 16..64.
    max_burst
        Beats of the longest burst, a power of two, 1..256; 16 suits AXI3 ports too.
    outstanding
        Read bursts in flight, a power of two, 1..64.
    """

    data_width: int = 64
    address_width: int = 32
    max_burst: int = 16
    outstanding: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise GshwError(f"{field.name} must be an integer, not {value!r}")
        _require_power_of_two("data_width", self.data_width, 32, 512)
        _require(
            16 <= self.address_width <= 64,
            "address_width",
            "must be from 16 to 64",
            self.address_width,
        )
        _require_power_of_two("max_burst", self.max_burst, 1, 256)
        _require_power_of_two("outstanding", self.outstanding, 1, 64)

    @property
    def data_bytes(self) -> int:
        """Bytes of one beat."""
        return self.data_width // 8


@dataclass(frozen=True, kw_only=True)
class Config:
    """One TOML file: the engine, its bus, its target, and the file's stem as a name."""

    name: str
    engine: EngineConfig
    bus: BusConfig = BusConfig()
    target: TargetConfig = TargetConfig()

    def to_toml(self) -> str:
        """The whole file with every default written out; parses to an equal config."""
        lines = ["[engine]"]
        for key, value in self.engine.canonical().items():
            lines.append(f"{key} = {_toml_value(value)}")
        for section, table in (("bus", self.bus), ("target", self.target)):
            lines += ["", f"[{section}]"]
            for key, value in dataclasses.asdict(table).items():
                lines.append(f"{key} = {_toml_value(value)}")
        return "\n".join(lines) + "\n"


def _toml_value(value: int | str) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)


def _enum_value(kind: type[enum.Enum], key: str, value: object) -> enum.Enum:
    names = [member.value for member in kind]
    if value not in names:
        raise GshwError(f"{key} must be one of {', '.join(names)}, not {value!r}")
    return kind(value)


def _check_keys(section: str, table: object, kind: type, required: set[str]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise GshwError(f"{section} must be a table, not {table!r}")
    known = [field.name for field in dataclasses.fields(kind)]
    for key in table:
        if key not in known:
            raise GshwError(f"[{section}] has no key {key!r}; its keys are {', '.join(known)}")
    for key in sorted(required - table.keys()):
        raise GshwError(f"[{section}] needs the key {key!r}")
    return dict(table)


def parse_config(text: str, name: str = "config") -> Config:
    """Parse and check one TOML text.

    Raises
    ------
    GshwError
        For TOML that does not parse, an unknown table or key, or a broken rule.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GshwError(f"not valid TOML: {error}") from None
    for key in document:
        if key not in ("engine", "bus", "target"):
            raise GshwError(f"unknown table or key {key!r}; the tables are engine, bus, target")
    if "engine" not in document:
        raise GshwError("needs a table [engine]")
    engine = _check_keys(
        "engine", document["engine"], EngineConfig, {"lanes", "rows", "bank_width"}
    )
    if "routing" in engine:
        engine["routing"] = _enum_value(Routing, "routing", engine["routing"])
    if "gather" in engine:
        engine["gather"] = _enum_value(Gather, "gather", engine["gather"])
    bus = _check_keys("bus", document.get("bus", {}), BusConfig, set())
    target = _check_keys("target", document.get("target", {}), TargetConfig, set())
    return Config(
        name=name,
        engine=EngineConfig(**engine),
        bus=BusConfig(**bus),
        target=TargetConfig(**target),
    )


def preset_folder() -> Path:
    """Folder of the presets: inside an installed wheel, else ``configs/`` of the checkout."""
    installed = Path(__file__).resolve().parent / "configs"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "configs"


def preset_names() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def load_config(source: str | Path) -> Config:
    """Read a config file, or a preset by its name (``v16x4``).

    Raises
    ------
    GshwError
        Prefixed with the file's name; also for a file that is missing or unreadable.
    """
    path = Path(source)
    if path.suffix != ".toml" and (preset_folder() / f"{source}.toml").is_file():
        path = preset_folder() / f"{source}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GshwError(
            f"{source}: no such config file, nor a preset; presets are {', '.join(preset_names())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise GshwError(f"{source}: cannot be read: {error}") from None
    try:
        return parse_config(text, name=path.stem)
    except GshwError as error:
        raise GshwError(f"{source}: {error}") from None
