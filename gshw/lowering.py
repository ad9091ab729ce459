"""The steps of a layer's program for one division of the buffers.

The scratchpad and the output buffer are cut into equal *slots* that are filled, used and emptied in
turn, so that one tile is loaded and another stored while a third one computes. Weights follow each
other round their buffers; what still lies there is not loaded again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gshw.config import Config
from gshw.cycles import tile_cycles
from gshw.encoding import EncodedLayer
from gshw.layout import group_fields, record_fields, word_width
from gshw.plan import N_LOOPS, Command, Plan, WeightTile
from gshw.program import INSTRUCTION_BYTES, Opcode, Unit
from gshw.program_builder import ProgramBuilder
from gshw.transfers import (
    LATENCY_CYCLES,
    TensorLayout,
    Transfer,
    Transfers,
    input_shape,
    part_layouts,
    tensor_layout,
)
from gshw.word_ring import Resident, WordRing

ALIGNMENT_BYTES = 64
"""Everything in memory starts at a multiple of this."""


def aligned(n_bytes: int) -> int:
    """The next multiple of :data:`ALIGNMENT_BYTES`."""
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True)
class Slots:
    """Into how many parts scratchpad and output buffer are cut, and the largest tile of weights.

    Parameters
    ----------
    groups, records
        Words.
    """

    input: int
    output: int
    groups: int
    records: int


@dataclass
class _Slot:
    """Part of a buffer.

    Parameters
    ----------
    base
        Its first word.
    filled_by, used_by
        The step that wrote it last, and the one that read it last.
    """

    base: int
    filled_by: int | None = None
    used_by: int | None = None


@dataclass(frozen=True)
class _Waiting:
    """A load or store that is not in the program yet, and the slot that it fills or empties."""

    transfer: Transfer
    slot: _Slot | Resident
    after: int | None
    owner: int


@dataclass(frozen=True)
class _Words:
    """What a command needs besides its input: no records where no bundle ends in it."""

    groups: Resident
    records: Resident | None
    table: Resident | None

    @property
    def tiles(self) -> list[Resident]:
        return [tile for tile in (self.groups, self.records, self.table) if tile is not None]


def _slots(depth: int, n_slots: int, used_by: int | None) -> list[_Slot]:
    return [_Slot(index * (depth // n_slots), used_by=used_by) for index in range(n_slots)]


def group_bytes(config: Config) -> int:
    """Of one group word in memory."""
    return -(-word_width(group_fields(config.engine)) // 32) * 4


def record_bytes(config: Config) -> int:
    """Of one record in memory."""
    return -(-word_width(record_fields(config.engine)) // 32) * 4


def table_bytes(config: Config, layer: EncodedLayer) -> int:
    """Of a layer's activation table in memory; 0 where it has none."""
    if layer.requantisation.table is None:
        return 0
    return config.engine.table_words * record_bytes(config)


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """Where a layer's data lie.

    Parameters
    ----------
    groups, records, table
        Addresses of the packed words; None where the layer has no table.
    sources
        The input, by parts; of an unfolded layer its windows.
    result
        The output.
    """

    groups: int
    records: int
    sources: tuple[TensorLayout, ...]
    result: TensorLayout
    table: int | None = None


def own_memory(config: Config, plan: Plan, n_samples: int, height: int, width: int) -> LayerMemory:
    """Everything of one layer side by side, from address 0 on.

    Parameters
    ----------
    n_samples, height, width
        Of the layer's input, before padding.
    """
    layer = plan.image.layer
    records = aligned(plan.image.n_groups * group_bytes(config))
    table = records + aligned(plan.image.n_records * record_bytes(config))
    start = table + aligned(table_bytes(config, layer))
    size = (n_samples, *input_shape(plan, height, width))
    sources = part_layouts(config, size, layer.geometry.stored_part_channels, start)
    end = max(source.address + source.n_bytes for source in sources)
    shape = (n_samples, *plan.output_shape, layer.n_rows)
    return LayerMemory(
        groups=0,
        records=records,
        sources=sources,
        result=tensor_layout(config, shape, aligned(end)),
        table=None if layer.requantisation.table is None else table,
    )


class Lowering:
    """Steps of a layer's program: all but the last stores, which :meth:`finish` appends.

    Parameters
    ----------
    plan
        Made for buffers that are as small as their slots.
    memory
        Where the layer's data lie; addresses in the steps count as these do.
    before
        The layer before in the same program. Its last stores come while the first weights are
        loaded; then the inputs are loaded.

    Attributes
    ----------
    builder
        The steps.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        slots: Slots,
        memory: LayerMemory,
        *,
        before: "Lowering | None" = None,
    ) -> None:
        self.config, self.plan, self.memory = config, plan, memory
        engine = config.engine
        self._transfers = Transfers(config, plan, memory.sources, memory.result)
        self._chunks = self._record_chunks(slots.records)
        self._lengths: dict[tuple[int, int], int] = {}
        self._unstored: list[tuple[int, list[_Waiting]]] = []
        self._number = 0 if before is None else before._number + 1
        if before is None:
            self.builder = ProgramBuilder()
            self._groups = WordRing(engine.group_buffer_depth)
            self._records = WordRing(engine.row_buffer_depth)
            self._tables = WordRing(engine.activation_tables)
            stored, free = None, None
        else:
            self.builder = before.builder
            self._groups, self._records = before._groups, before._records
            self._tables = before._tables
            stored, free = self._follow(before)
        self._input = _slots(engine.bank_depth, slots.input, stored)
        self._output = _slots(engine.output_depth, slots.output, free)
        self._emit()

    def finish(self) -> None:
        """Append what is left to store."""
        self._mix([], self._left())

    @property
    def estimated_cycles(self) -> int:
        """Length of the program so far."""
        return self.builder.estimate()

    @property
    def cost(self) -> int:
        """The same with the port's cycles for the instructions themselves: what to keep small."""
        n_bytes = len(self.builder.steps) * INSTRUCTION_BYTES
        return self.estimated_cycles + n_bytes // self.config.bus.data_bytes

    def _left(self) -> list[_Waiting]:
        left = [waiting for _, stores in self._unstored for waiting in stores]
        self._unstored = []
        return left

    def _follow(self, before: "Lowering") -> tuple[int, int]:
        """Load the first weights while the layer before is stored.

        Returns
        -------
        tuple
            A step of compute after which the inputs are in memory and the scratchpad is free, and
            a store after which the output buffer is.
        """
        weights: list[_Waiting] = []
        tile, _ = self.plan.commands(self.plan.tile_runs[0])[0]
        self._place_weights(tile, weights)
        self._mix(weights, before._left())
        store = self.builder.last(Unit.STORE)
        return self.builder.add(Opcode.SYNC, {}, (store,), 1, self._number), store

    def _record_chunks(self, depth: int) -> dict[int, tuple[int, int]]:
        """Range of records to load together, by the first record of every weight tile.

        A tile needs few records; loading those of many tiles at once keeps the port busy.
        """
        chunks: list[list[WeightTile]] = []
        for tile in self.plan.weight_tiles:
            if tile.record_stop == tile.record_start:
                continue
            if not chunks or tile.record_stop - chunks[-1][0].record_start > depth:
                chunks.append([])
            chunks[-1].append(tile)
        return {
            tile.record_start: (chunk[0].record_start, chunk[-1].record_stop)
            for chunk in chunks
            for tile in chunk
        }

    def _emit(self) -> None:
        """Loads of a command, mixed with the stores of the last but one, then the command.

        So fetch has handed out a command before it meets what must wait for that command, and
        loads and stores reach their queues in turns.
        """
        number = 0
        unstored = self._unstored
        for index, tile in enumerate(self.plan.stream_tiles()):
            source = self._input[index % len(self._input)]
            result = self._output[index % len(self._output)]
            loads = [
                _Waiting(transfer, source, source.used_by, self._number)
                for transfer in self._transfers.loads(tile, source.base)
            ]
            for run in self.plan.tile_runs:
                for weights, command in self.plan.commands(run):
                    words = self._place_weights(weights, loads)
                    stores: list[_Waiting] = []
                    while unstored and (
                        unstored[0][0] < number - 1 or unstored[0][1][0].slot is result
                    ):
                        stores += unstored.pop(0)[1]
                    self._mix(loads, stores)
                    self._run(command, weights, source, words, result)
                    loads = []
                    number += 1
            unstored.append(
                (
                    number - 1,
                    [
                        _Waiting(transfer, result, result.filled_by, self._number)
                        for transfer in self._transfers.stores(tile, result.base)
                    ],
                )
            )

    def _mix(self, loads: Sequence[_Waiting], stores: Sequence[_Waiting]) -> None:
        """Append loads and stores, evenly mixed."""
        places = [((n + 0.5) / len(loads), 0, load) for n, load in enumerate(loads)]
        places += [((n + 0.5) / len(stores), 1, store) for n, store in enumerate(stores)]
        for _, is_store, waiting in sorted(places, key=lambda place: place[:2]):
            transfer = waiting.transfer
            after = () if waiting.after is None else (waiting.after,)
            step = self.builder.add(
                transfer.opcode, transfer.values, after, transfer.n_cycles, waiting.owner
            )
            if is_store:
                waiting.slot.used_by = step
            else:
                waiting.slot.filled_by = step

    # --- weights -----------------------------------------------------------------------------

    def _place_weights(self, tile: WeightTile, loads: list[_Waiting]) -> _Words:
        """Groups, records and table of a tile in their buffers."""
        config, memory = self.config, self.memory
        table = None
        if memory.table is not None:
            n_words, base = config.engine.table_words, config.engine.table_base
            table = self._load_words(
                Opcode.LOAD_RECORDS,
                self._tables,
                (0, 1),
                memory.table,
                n_words * record_bytes(config),
                loads,
                lambda number: base + number * n_words,
            )
        groups = self._load_words(
            Opcode.LOAD_GROUPS,
            self._groups,
            (tile.group_start, tile.group_stop),
            memory.groups,
            group_bytes(config),
            loads,
        )
        if tile.record_start == tile.record_stop:
            return _Words(groups, None, table)
        records = self._load_words(
            Opcode.LOAD_RECORDS,
            self._records,
            self._chunks[tile.record_start],
            memory.records,
            record_bytes(config),
            loads,
        )
        return _Words(groups, records, table)

    def _load_words(
        self,
        opcode: Opcode,
        ring: WordRing,
        entries: tuple[int, int],
        address: int,
        word_bytes: int,
        loads: list[_Waiting],
        target: Callable[[int], int] = lambda word: word,
    ) -> Resident:
        """Entries in their ring; what is not there is loaded to the targets of its words."""
        resident, pieces = ring.place(address, *entries)
        for piece in pieces:
            n_bytes = (piece.stop - piece.first) * word_bytes
            values = {
                "address": address + piece.first * word_bytes,
                "run_bytes": n_bytes,
                "target": target(piece.word),
            }
            n_cycles = -(-n_bytes // self.config.bus.data_bytes) + LATENCY_CYCLES
            transfer = Transfer(opcode, values, n_cycles)
            loads.append(_Waiting(transfer, resident, piece.after, self._number))
        return resident

    # --- compute -----------------------------------------------------------------------------

    def _run(
        self,
        command: Command,
        tile: WeightTile,
        source: _Slot,
        words: _Words,
        result: _Slot,
    ) -> None:
        engine, stage = self.config.engine, self.plan.image.layer.requantisation
        groups, records, table = words.groups, words.records, words.table
        record_base = 0
        if records is not None:
            record_base = records.base + tile.record_start - records.first
        values = {
            "group_base": groups.base,
            "n_groups": command.n_groups,
            "record_base": record_base,
            "n_records": command.n_records,
            "read_base": source.base + command.read_base,
            "write_base": result.base + command.write_base,
            "signed_input": int(stage.signed_input),
            "continues": int(command.continues),
            "maximum": int(stage.maximum),
            "table": 0 if table is None else table.base + 1,
            "low": stage.low,
            "high": stage.high,
        }
        read = command.steps(command.read_strides, engine.bank_depth)
        write = command.steps(command.write_strides, engine.output_depth)
        for loop in range(N_LOOPS):
            values[f"count_less_1_{loop}"] = command.counts[loop] - 1
            values[f"read_step_{loop}"] = read[loop]
            values[f"write_step_{loop}"] = write[loop]
        waits = [source.filled_by, result.used_by, *(tile.filled_by for tile in words.tiles)]
        after = [step for step in waits if step is not None]
        n_cycles = self._length(tile, command.n_positions)
        step = self.builder.add(Opcode.RUN, values, after, n_cycles, self._number)
        source.used_by = result.filled_by = step
        for resident in words.tiles:
            resident.used_by = step

    def _length(self, tile: WeightTile, n_positions: int) -> int:
        key = tile.group_start, n_positions
        if key not in self._lengths:
            law = tile_cycles(self.config.engine, self.plan.image, tile, n_positions)
            self._lengths[key] = law.total
        return self._lengths[key]
