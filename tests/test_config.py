"""The config: every rule by its exact message, presets, canonical form and hash."""

import dataclasses
import hashlib
import re

import pytest

from gshw.config import (
    BusConfig,
    EngineConfig,
    Gather,
    Routing,
    TargetConfig,
    load_config,
    parse_config,
    preset_folder,
    preset_names,
)
from gshw.errors import GshwError

LEGAL = {"lanes": 4, "rows": 2, "bank_width": 16}
MINIMAL = "[engine]\nlanes = 4\nrows = 2\nbank_width = 16\n"

BLOCK_RULE = (
    "bank_width must be columns * activation_width times a power of two (the block), at most 512: "
    "a power-of-two multiple of {}, not {}"
)
BROKEN = [
    ({"lanes": 12}, "lanes must be a power of two from 2 to 64, not 12"),
    ({"lanes": 1}, "lanes must be a power of two from 2 to 64, not 1"),
    ({"lanes": 128}, "lanes must be a power of two from 2 to 64, not 128"),
    ({"lanes": 0}, "lanes must be a power of two from 2 to 64, not 0"),
    ({"lanes": -4}, "lanes must be a power of two from 2 to 64, not -4"),
    ({"lanes": "4"}, "lanes must be an integer, not '4'"),
    ({"lanes": True}, "lanes must be an integer, not True"),
    ({"lanes": 4.0}, "lanes must be an integer, not 4.0"),
    ({"drain_rows": None}, "drain_rows must be an integer, not None"),
    ({"max_pooling": 1}, "max_pooling must be true or false, not 1"),
    ({"activation_tables": 3}, "activation_tables must be 0, 1, 2, 4 or 8, not 3"),
    ({"activation_tables": True}, "activation_tables must be an integer, not True"),
    (
        {"activation_tables": 1, "activation_width": 16, "bank_width": 32},
        "activation_tables must be 0 with activation_width = 16, not 1",
    ),
    (
        {"activation_tables": 1, "row_buffer_depth": 32768},
        "row_buffer_depth must be below 32768 with activation_tables, not 32768",
    ),
    ({"rows": 3}, "rows must be a power of two that divides lanes = 4, not 3"),
    ({"rows": 8}, "rows must be a power of two that divides lanes = 4, not 8"),
    ({"rows": 0}, "rows must be a power of two that divides lanes = 4, not 0"),
    ({"bank_depth": 8}, "bank_depth must be a power of two from 16 to 65536, not 8"),
    ({"bank_depth": 100}, "bank_depth must be a power of two from 16 to 65536, not 100"),
    ({"bank_depth": 1 << 17}, "bank_depth must be a power of two from 16 to 65536, not 131072"),
    ({"output_depth": 8}, "output_depth must be a power of two from 16 to 65536, not 8"),
    ({"output_depth": 48}, "output_depth must be a power of two from 16 to 65536, not 48"),
    ({"columns": 0}, "columns must be from 1 to 16, not 0"),
    ({"columns": 17}, "columns must be from 1 to 16, not 17"),
    ({"activation_width": 6}, "activation_width must be 4, 8 or 16, not 6"),
    ({"weight_width": 32}, "weight_width must be 4, 8 or 16, not 32"),
    ({"bank_width": 24}, BLOCK_RULE.format(8, 24)),
    ({"bank_width": 0}, BLOCK_RULE.format(8, 0)),
    ({"bank_width": 4}, BLOCK_RULE.format(8, 4)),
    ({"bank_width": 1024}, BLOCK_RULE.format(8, 1024)),
    ({"bank_width": 16, "columns": 3}, BLOCK_RULE.format(24, 16)),
    (
        {"accumulator_width": 15},
        "accumulator_width must be from 16 (16, or one whole product) to 32, not 15",
    ),
    (
        {"accumulator_width": 33},
        "accumulator_width must be from 16 (16, or one whole product) to 32, not 33",
    ),
    (
        {"accumulator_width": 23, "weight_width": 16},
        "accumulator_width must be from 24 (16, or one whole product) to 32, not 23",
    ),
    (
        {"accumulator_width": 12, "weight_width": 4, "activation_width": 4},
        "accumulator_width must be from 16 (16, or one whole product) to 32, not 12",
    ),
    ({"group_buffer_depth": 1}, "group_buffer_depth must be from 2 to 65536, not 1"),
    ({"group_buffer_depth": 65537}, "group_buffer_depth must be from 2 to 65536, not 65537"),
    ({"row_buffer_depth": 1}, "row_buffer_depth must be from 2 to 65536, not 1"),
    ({"drain_rows": 4}, "drain_rows must be a power of two that is at most rows = 2, not 4"),
    ({"drain_rows": 0}, "drain_rows must be a power of two that is at most rows = 2, not 0"),
    (
        {"drain_rows": 3, "rows": 4},
        "drain_rows must be a power of two that is at most rows = 4, not 3",
    ),
    (
        {"routing": Routing.DIRECT},
        "routing may be 'direct' only with rows = 1 (a horizontal engine), "
        "not 'direct' with rows = 2",
    ),
    (
        {"gather": Gather.ARBITRATED},
        "gather may be 'arbitrated' only with routing = 'crossbar' "
        "(bank numbers known at run time), not 'arbitrated' with routing = 'benes'",
    ),
    ({"routing": "benes"}, "routing must be a Routing, not benes"),
    ({"gather": "scheduled"}, "gather must be a Gather, not scheduled"),
]

LEGAL_EDGES = [
    {"lanes": 2, "rows": 2},
    {"lanes": 64, "rows": 64, "drain_rows": 64},
    {"bank_depth": 16},
    {"bank_depth": 65536},
    {"output_depth": 16},
    {"output_depth": 65536},
    {"bank_width": 512},
    {"bank_width": 8},
    {"bank_width": 96, "columns": 3},
    {"bank_width": 512, "columns": 16},
    {"accumulator_width": 16},
    {"accumulator_width": 32, "weight_width": 16, "activation_width": 16},
    {"group_buffer_depth": 2, "row_buffer_depth": 65536},
    {"group_buffer_depth": 65536, "row_buffer_depth": 2},
    {"rows": 1, "routing": Routing.DIRECT},
    {"routing": Routing.CROSSBAR, "gather": Gather.ARBITRATED},
]


def raises(message: str):
    return pytest.raises(GshwError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_engine_rules(change, message):
    with raises(message):
        EngineConfig(**LEGAL | change)


@pytest.mark.parametrize("change", LEGAL_EDGES)
def test_engine_limits_are_legal(change):
    config = EngineConfig(**LEGAL | change)
    assert {key: getattr(config, key) for key in change} == change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": ""}, "device must be a non-empty string, not ''"),
        ({"device": 5}, "device must be a non-empty string, not 5"),
        ({"clock_mhz": "fast"}, "clock_mhz must be an integer, not 'fast'"),
        ({"clock_mhz": True}, "clock_mhz must be an integer, not True"),
        ({"clock_mhz": 0}, "clock_mhz must be from 1 to 1000, not 0"),
        ({"clock_mhz": 1001}, "clock_mhz must be from 1 to 1000, not 1001"),
    ],
)
def test_target_rules(change, message):
    with raises(message):
        TargetConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_width": 16}, "data_width must be a power of two from 32 to 512, not 16"),
        ({"data_width": 96}, "data_width must be a power of two from 32 to 512, not 96"),
        ({"data_width": "64"}, "data_width must be an integer, not '64'"),
        ({"address_width": 12}, "address_width must be from 16 to 64, not 12"),
        ({"address_width": 65}, "address_width must be from 16 to 64, not 65"),
        ({"max_burst": 0}, "max_burst must be a power of two from 1 to 256, not 0"),
        ({"max_burst": 512}, "max_burst must be a power of two from 1 to 256, not 512"),
        ({"outstanding": 3}, "outstanding must be a power of two from 1 to 64, not 3"),
        ({"outstanding": True}, "outstanding must be an integer, not True"),
    ],
)
def test_bus_rules(change, message):
    with raises(message):
        BusConfig(**change)


def test_bus_table():
    config = parse_config(MINIMAL + "[bus]\ndata_width = 128\noutstanding = 4\n")
    assert config.bus == BusConfig(data_width=128, outstanding=4)
    assert config.bus.data_bytes == 16
    assert parse_config(MINIMAL).bus == BusConfig()
    assert parse_config(config.to_toml(), name=config.name) == config


ENGINE_KEYS = (
    "lanes, rows, bank_width, bank_depth, output_depth, columns, activation_width, weight_width, "
    "accumulator_width, group_buffer_depth, row_buffer_depth, drain_rows, routing, gather, "
    "max_pooling, activation_tables"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a table [engine]"),
        ("[target]\n", "needs a table [engine]"),
        ("engine = 3\n", "engine must be a table, not 3"),
        ("target = 'x'\n" + MINIMAL, "target must be a table, not 'x'"),
        ("name = 'x'\n", "unknown table or key 'name'; the tables are engine, bus, target"),
        (MINIMAL + "[sim]\n", "unknown table or key 'sim'; the tables are engine, bus, target"),
        (MINIMAL + "banks = 4\n", f"[engine] has no key 'banks'; its keys are {ENGINE_KEYS}"),
        (
            MINIMAL + "[target]\nclock = 4\n",
            "[target] has no key 'clock'; its keys are device, clock_mhz",
        ),
        ("[engine]\nlanes = 4\nbank_width = 16\n", "[engine] needs the key 'rows'"),
        ("[engine]\n", "[engine] needs the key 'bank_width'"),
        (
            MINIMAL + "routing = 'torus'\n",
            "routing must be one of direct, crossbar, benes, not 'torus'",
        ),
        (MINIMAL + "routing = 1\n", "routing must be one of direct, crossbar, benes, not 1"),
        (
            MINIMAL + "gather = ['scheduled']\n",
            "gather must be one of scheduled, arbitrated, not ['scheduled']",
        ),
        (MINIMAL + "columns = 2.0\n", "columns must be an integer, not 2.0"),
        (MINIMAL + "columns = true\n", "columns must be an integer, not True"),
        (MINIMAL + "columns = '2'\n", "columns must be an integer, not '2'"),
        (MINIMAL + "columns = 20\n", "columns must be from 1 to 16, not 20"),
        (MINIMAL + "[target]\nclock_mhz = 0\n", "clock_mhz must be from 1 to 1000, not 0"),
    ],
)
def test_toml_rules(text, message):
    with raises(message):
        parse_config(text)


def test_text_that_is_not_toml():
    with pytest.raises(GshwError, match=r"^not valid TOML: .*line 2"):
        parse_config("[engine]\nlanes = = 4\n")
    with pytest.raises(GshwError, match=r"^not valid TOML: "):
        parse_config(MINIMAL + "lanes = 4\n")


def test_defaults_of_a_minimal_text():
    config = parse_config(MINIMAL, name="mine")
    assert config.name == "mine"
    assert config.engine == EngineConfig(**LEGAL)
    assert config.target == TargetConfig(device="ecp5-85k", clock_mhz=100)
    assert (config.engine.routing, config.engine.gather) == (Routing.BENES, Gather.SCHEDULED)


def test_load_config_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    assert load_config(path).name == "mine"
    assert load_config(str(path)).engine == EngineConfig(**LEGAL)
    path.write_text(MINIMAL + "columns = 0\n")
    with raises(f"{path}: columns must be from 1 to 16, not 0"):
        load_config(path)


def test_load_config_files_that_cannot_be_read(tmp_path):
    with raises(
        f"{tmp_path}/none.toml: no such config file, nor a preset; "
        f"presets are {', '.join(preset_names())}"
    ):
        load_config(tmp_path / "none.toml")
    with raises(f"v17: no such config file, nor a preset; presets are {', '.join(preset_names())}"):
        load_config("v17")
    with pytest.raises(GshwError, match=f"^{re.escape(str(tmp_path))}: cannot be read: .+$"):
        load_config(tmp_path)
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(GshwError, match=f"^{re.escape(str(path))}: cannot be read: .+$"):
        load_config(path)


def test_presets():
    """Every preset loads by name and by path, and states every key."""
    names = preset_names()
    assert {"tiny", "v16x4", "arb16"} <= set(names)
    assert names == sorted(path.stem for path in preset_folder().glob("*.toml"))
    for name in names:
        path = preset_folder() / f"{name}.toml"
        config = load_config(name)
        assert config.name == name
        assert config == load_config(path)
        keys = set(re.findall(r"^(\w+) =", path.read_text(), re.M))
        assert keys == set(config.engine.canonical()) | {"device", "clock_mhz"}


@pytest.mark.parametrize("name", preset_names())
def test_toml_round_trip(name):
    config = load_config(name)
    again = parse_config(config.to_toml(), name=name)
    assert again == config
    assert again.engine.hash == config.engine.hash
    assert again.to_toml() == config.to_toml()


@pytest.mark.parametrize("device", ['a "quoted" name', "back\\slash", "tab\tnew\nline", "größer"])
def test_round_trip_of_awkward_names(device):
    config = dataclasses.replace(load_config("tiny"), target=TargetConfig(device=device))
    assert parse_config(config.to_toml(), name="tiny") == config


VARIANTS = [
    {},
    {"lanes": 8},
    {"rows": 4},
    {"bank_width": 32},
    {"bank_depth": 2048},
    {"output_depth": 2048},
    {"columns": 2},
    {"activation_width": 4},
    {"weight_width": 4},
    {"accumulator_width": 31},
    {"group_buffer_depth": 1023},
    {"row_buffer_depth": 511},
    {"drain_rows": 2},
    {"routing": Routing.CROSSBAR},
    {"routing": Routing.CROSSBAR, "gather": Gather.ARBITRATED},
    {"max_pooling": True},
    {"activation_tables": 2},
]


def test_hash_is_equal_exactly_for_equal_engines():
    """One variant of every key; defaults count as written out."""
    keys = {key for change in VARIANTS for key in change}
    assert keys == {"max_pooling", "activation_tables", *EngineConfig(**LEGAL).canonical()}
    engines = [EngineConfig(**LEGAL | change) for change in VARIANTS]
    assert len({engine.hash for engine in engines}) == len(engines)
    for engine in engines:
        assert EngineConfig(**dataclasses.asdict(engine)).hash == engine.hash
        assert re.fullmatch("[0-9a-f]{64}", engine.hash)
        assert f"{engine.hash32:08x}" == engine.hash[:8]


def test_hash_never_changes():
    """Artefacts hold it: SHA-256 of the sorted canonical JSON, worked out by hand."""
    text = (
        '{"accumulator_width":32,"activation_width":8,"bank_depth":1024,"bank_width":16,'
        '"columns":1,"drain_rows":1,"gather":"scheduled","group_buffer_depth":1024,"lanes":4,'
        '"output_depth":1024,"routing":"benes","row_buffer_depth":512,"rows":2,"weight_width":8}'
    )
    assert EngineConfig(**LEGAL).hash == hashlib.sha256(text.encode()).hexdigest()


def test_bus_and_target_do_not_change_the_hash():
    slow = parse_config(MINIMAL + "[target]\nclock_mhz = 12\n")
    wide = parse_config(MINIMAL + "[bus]\ndata_width = 512\n")
    assert len({slow, wide, parse_config(MINIMAL)}) == 3
    assert slow.engine.hash == wide.engine.hash == parse_config(MINIMAL).engine.hash


def test_derived_values_of_the_default_preset():
    """The numbers of the design's example engine, counted by hand."""
    config = load_config("v16x4").engine
    assert (config.block, config.lanes_per_row, config.macs_per_cycle) == (1, 1, 64)
    assert (config.address_width, config.output_address_width) == (11, 10)
    assert (config.row_width, config.drain_width) == (14, 5)
    assert (config.group_address_width, config.record_address_width) == (11, 9)
    assert (config.channels_per_row, config.scratchpad_row_width) == (16, 512)
    assert (config.n_switches, config.max_weight) == (49, 127)
    assert config.pattern_name == "GS(16, 1)"
    block = load_config("block16").engine
    assert (block.block, block.log2_block, block.row_width) == (4, 2, 16)
    assert block.pattern_name == "GS(16, 1) with 1x4 blocks"
    assert load_config("hybrid16").engine.pattern_name == "GS(16, 4)"


@pytest.mark.parametrize(
    ("width", "signed", "unsigned"),
    [(4, (-8, 7), (0, 15)), (8, (-128, 127), (0, 255)), (16, (-32768, 32767), (0, 65535))],
)
def test_activation_range(width, signed, unsigned):
    config = EngineConfig(lanes=2, rows=1, bank_width=16, activation_width=width)
    assert config.activation_range(True) == signed
    assert config.activation_range(False) == unsigned


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig(**LEGAL).lanes = 8
