"""From an encoded layer to a program and its memory.

How the buffers are divided for double buffering is found by trying: the program of least
estimated length wins. :mod:`gshw.lowering` makes its steps.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.encoding import EncodedLayer
from gshw.errors import GshwError
from gshw.golden import check_activations, unfold_windows
from gshw.image import LayerImage
from gshw.lowering import ALIGNMENT_BYTES, Lowering, Slots, aligned, group_bytes, own_memory
from gshw.plan import Plan
from gshw.program import INSTRUCTION_BYTES, assemble
from gshw.program_model import pack_codes, unpack_codes
from gshw.transfers import TensorLayout, joined_parts

_SLOTS = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 4), (8, 8))
_WEIGHT_SHARES = (1, 2, 4)
"""Tiles of weights are at most this part of their buffer."""


@dataclass(frozen=True)
class Segment:
    """Bytes at an address."""

    name: str
    address: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class LayerProgram:
    """A layer ready to run: the program, its memory, and how to get arrays in and out.

    Parameters
    ----------
    name, config
        The layer's name, and what it was lowered for.
    segments
        What must be in memory beforehand: ``program``, ``groups``, ``records``.
    input_layout, output_layout
        The tensors in memory, channel-last.
    base_address, n_bytes
        All of the memory that the program touches.
    estimated_cycles
        By the cycle law of the engine and the bandwidth of the bus; no bus is as good.
    """

    name: str
    config: Config
    layer: EncodedLayer
    segments: tuple[Segment, ...]
    input_layout: TensorLayout
    output_layout: TensorLayout
    base_address: int
    n_bytes: int
    estimated_cycles: int

    @property
    def program(self) -> bytes:
        """The binary program."""
        return self.segments[0].data

    @property
    def program_address(self) -> int:
        return self.segments[0].address

    @property
    def image(self) -> bytes:
        """Program and weights as one piece, to lie at ``base_address``."""
        data = bytearray()
        for segment in self.segments:
            data += bytes(segment.address - self.base_address - len(data)) + segment.data
        return bytes(data)

    @property
    def memory_map(self) -> str:
        """One line per part of the memory: name, address, bytes, shape."""
        parts = [(s.name, s.address, len(s.data), "") for s in self.segments]
        for name, tensor in (("input", self.input_layout), ("output", self.output_layout)):
            parts.append((name, tensor.address, tensor.n_bytes, f"  {tensor.shape}"))
        return "\n".join(
            f"{name:8} {address:#010x} {n_bytes:9} bytes{shape}"
            for name, address, n_bytes, shape in parts
        )

    def memory(self, activations: NDArray) -> NDArray[np.uint8]:
        """The memory's contents before the program runs; results are 0."""
        memory = np.zeros(self.n_bytes, dtype=np.uint8)
        memory[: len(self.image)] = np.frombuffer(self.image, np.uint8)
        data = self.input_bytes(activations)
        start = self.input_layout.address - self.base_address
        memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
        return memory

    def input_bytes(self, activations: NDArray) -> bytes:
        """What must lie at ``input_layout.address``.

        Parameters
        ----------
        activations
            As :func:`gshw.golden.check_activations`, of the size that was lowered.
        """
        x = check_activations(self.config.engine, self.layer, activations)
        if self.layer.geometry.unfold:
            x = unfold_windows(self.layer.geometry, x)
        if x.shape != self.input_layout.shape:
            raise GshwError(
                f"layer {self.name!r} was lowered for an input of shape "
                f"{self.input_layout.shape}, not {x.shape}"
            )
        engine, channels = self.config.engine, self.layer.geometry.stored_part_channels
        pieces = np.split(x, np.cumsum(channels)[:-1], axis=3)
        return np.concatenate([pack_codes(engine, p) for p in pieces], axis=3).tobytes()

    def read_output(self, memory: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Output codes, shape (n_samples, out_height, out_width, n_rows), of the memory."""
        start = self.output_layout.address - self.base_address
        return self.output_codes(memory[start : start + self.output_layout.n_bytes])

    def output_codes(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Output codes of the bytes at ``output_layout.address``."""
        signed = self.layer.requantisation.signed_output
        return tensor_codes(self.config, self.output_layout, data, signed=signed)


def tensor_codes(
    config: Config, layout: TensorLayout, data: NDArray[np.uint8], *, signed: bool
) -> NDArray[np.int64]:
    """Codes of a tensor's bytes, of the layout's shape."""
    engine, shape = config.engine, layout.shape
    codes = unpack_codes(engine, data.reshape(*shape[:3], -1))[..., : shape[3]]
    if signed:
        width = engine.activation_width
        codes = codes - ((codes >> (width - 1)) << width)
    return codes


def check_base_address(base_address: int) -> None:
    """Refuse an address at which no memory may begin.

    Raises
    ------
    GshwError
        Naming the rule and the address.
    """
    if base_address < 0 or base_address % ALIGNMENT_BYTES:
        raise GshwError(
            f"base_address must be a multiple of {ALIGNMENT_BYTES}, not {base_address:#x}"
        )


def check_addressable(config: Config, stop: int, what: str) -> None:
    """Refuse memory up to ``stop``, exclusively, where the bus does not reach it.

    Raises
    ------
    GshwError
        Naming ``what`` needs the memory, and both addresses.
    """
    limit = 1 << config.bus.address_width
    if stop > limit:
        raise GshwError(
            f"{what} needs memory up to {stop - 1:#x}, beyond the bus's last address {limit - 1:#x}"
        )


def lower_layer(
    config: Config,
    layer: EncodedLayer,
    n_samples: int,
    height: int,
    width: int,
    *,
    image: LayerImage | None = None,
    base_address: int = 0,
) -> LayerProgram:
    """Make the program of one layer for an input size.

    Parameters
    ----------
    n_samples, height, width
        Of the layer's input, before padding.
    base_address
        Where the memory begins; the program lies there.

    Raises
    ------
    GshwError
        For a foreign layer, one that does not fit the buffers, or a memory beyond the bus.
    """
    image = image or LayerImage(config.engine, layer)
    _, lowering = choose_plan(config, image, n_samples, height, width)
    return layer_program(config, image, lowering, base_address)


def choose_plan(
    config: Config, image: LayerImage, n_samples: int, height: int, width: int
) -> tuple[Slots, Lowering]:
    """The division of the buffers whose program is shortest, as a program of its own.

    By an estimate, whose choices cost next to nothing over those of the exact cycle law:
    ``scripts/bench --only plans``.

    Raises
    ------
    GshwError
        For a layer that does not fit the buffers.
    """
    plans = lowered_plans(config, image, n_samples, height, width)
    return min(plans, key=lambda plan: plan[1].cost)


def lowered_plans(
    config: Config, image: LayerImage, n_samples: int, height: int, width: int
) -> Iterator[tuple[Slots, Lowering]]:
    """Divisions of the buffers that are worth a look, each as a program of its own.

    Raises
    ------
    GshwError
        For a layer that does not fit the buffers.
    """
    plans = _plans(config, image, n_samples, height, width)
    fewest = min(_n_commands(plan) for _, plan in plans)
    for slots, plan in plans:
        # Weights that are loaded again at every position are worth no closer look.
        if _n_commands(plan) > 8 * fewest + 64:
            continue
        memory = own_memory(config, plan, n_samples, height, width)
        lowering = Lowering(config, plan, slots, memory)
        lowering.finish()
        yield slots, lowering


def layer_program(
    config: Config, image: LayerImage, lowering: Lowering, base_address: int
) -> LayerProgram:
    """Everything of a layer at its address: the program first, then what it reads and writes."""
    name, memory = image.layer.name, lowering.memory
    check_base_address(base_address)
    builder, result = lowering.builder, memory.result
    source = joined_parts(memory.sources)
    data = base_address + aligned((len(builder.steps) + 1) * INSTRUCTION_BYTES)
    stop = data + result.address + result.n_bytes
    check_addressable(config, stop, f"layer {name!r}")
    program = assemble(config.engine.hash32, builder.instructions(data))
    groups = image.pack_groups(lowering.plan.pitch).tobytes()
    return LayerProgram(
        name=name,
        config=config,
        layer=image.layer,
        segments=(
            Segment("program", base_address, program),
            Segment("groups", data, groups),
            Segment("records", data + memory.records, image.pack_records().tobytes()),
            *(
                []
                if memory.table is None
                else [Segment("table", data + memory.table, image.pack_table().tobytes())]
            ),
        ),
        input_layout=dataclasses.replace(source, address=data + source.address),
        output_layout=dataclasses.replace(result, address=data + result.address),
        base_address=base_address,
        n_bytes=stop - base_address,
        estimated_cycles=lowering.estimated_cycles,
    )


def _plans(
    config: Config, image: LayerImage, n_samples: int, height: int, width: int
) -> list[tuple[Slots, Plan]]:
    """Every division of the buffers that holds the layer."""
    engine = config.engine
    fits = image.n_records <= engine.row_buffer_depth
    halves = int(image.drain.max()) <= engine.row_buffer_depth // 2
    n_records = engine.row_buffer_depth // (2 if halves and not fits else 1)
    group_cycles = -(-group_bytes(config) // config.bus.data_bytes)
    sizes = [engine.group_buffer_depth // share for share in _WEIGHT_SHARES]
    largest = int(np.diff(image.group_ptr).max(initial=0))
    if sizes[1] < largest < sizes[0]:
        # One bundle at a time, and as much of the next as there is room for.
        sizes.insert(1, largest)
    plans: list[tuple[Slots, Plan]] = []
    reason: GshwError | None = None
    for n_input, n_output in _SLOTS:
        for n_groups in sizes:
            slots = Slots(n_input, n_output, n_groups, n_records)
            try:
                usable = dataclasses.replace(
                    engine,
                    bank_depth=engine.bank_depth // n_input,
                    output_depth=engine.output_depth // n_output,
                    group_buffer_depth=n_groups,
                    row_buffer_depth=n_records,
                )
                size = n_samples, height, width
                plans.append((slots, Plan(usable, image, *size, group_cycles=group_cycles)))
            except GshwError as error:
                # The whole buffers come first: their reason is the one that matters.
                reason = reason or error
    if not plans:
        assert reason is not None, "no plan has a reason"
        raise reason
    return plans


def _n_commands(plan: Plan) -> int:
    per_tile = sum(1 if len(run) == 1 else len(run) * plan.n_positions for run in plan.tile_runs)
    return per_tile * plan.n_stream_tiles
