"""Draws random instructions that fit together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.engine_model import walk_positions
from gshw.program import INSTRUCTION_BYTES, Opcode, Unit
from gshw.program_builder import ProgramBuilder
from gshw.program_order import Resource
from sim_tests.kernels import MAX_CHAIN, Kernel, random_kernel, whole_word_kernels
from sim_tests.program_shapes import Shapes, spread

_Access = tuple[Resource, NDArray[np.int64], bool]
"""What is used, which cells, and whether they are written."""


class ProgramMaker(Shapes):
    """Draws instructions one after the other and remembers who used what.

    Parameters
    ----------
    n_bytes
        Of the memory.
    n_steps, window_words, feedback
        See :func:`sim_tests.programs.random_program`.

    Attributes
    ----------
    builder
        The steps so far.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        config: Config,
        base: int,
        n_bytes: int,
        n_steps: int,
        window_words: int,
        feedback: bool,
    ) -> None:
        super().__init__(rng, config, base, n_bytes, window_words, feedback)
        self.n_steps = n_steps
        self.builder = ProgramBuilder()
        self._eagerness = rng.choice([0.0, 0.1, 0.5])
        self._chain = 0
        self._kernels: list[Kernel] = []
        # Kernel and its first entry, as long as all of it is there.
        self._groups: list[tuple[Kernel, int]] = []
        self._records: list[tuple[Kernel, int]] = []
        # Where a kernel's first word lies in memory, and how far it is to the next.
        self._places: dict[tuple[Kernel, Opcode], tuple[int, int]] = {}

    def make(self) -> int:
        """Draw all instructions; returns the place of the program in the memory."""
        sweeps = whole_word_kernels(self.rng, self.engine)
        # Every step may need a sync before it.
        n_instructions = 2 * self.n_steps + 16 * len(sweeps) + 16
        address = self.reserve(INSTRUCTION_BYTES * n_instructions)
        self._prologue(sweeps)
        steps = (
            (self._load_activations, 5),
            (self._fill, 2),
            (self._load_groups, 2),
            (self._load_records, 2),
            (self._load_table, 1),
            (self._run, 7),
            (self._sync, 1),
            (self._store, 6),
        )
        weights = np.array([weight for _, weight in steps], dtype=float)
        for choice in self.rng.choice(len(steps), self.n_steps, p=weights / weights.sum()):
            steps[choice][0]()
        for _ in range(2):
            self._store(whole=True)
        return address

    @property
    def written(self) -> NDArray[np.bool_]:
        """Bytes of the memory that some store writes."""
        return self.latest[Resource.MEMORY, True] >= 0

    # --- bookkeeping -------------------------------------------------------------------------

    def _add(self, opcode: Opcode, values: dict[str, int], accesses: Sequence[_Access]) -> int:
        after = set()
        for resource, cells, writes in accesses:
            latest = int(self.latest[resource, not writes][cells].max(initial=-1))
            if latest < 0:
                continue
            if resource is Resource.MEMORY:
                # Load and store are no neighbours: compute passes the news on.
                latest = self.builder.add(Opcode.SYNC, {}, (latest,), 1)
            after.add(latest)
        after |= self._needless(opcode.unit)
        number = self.builder.add(opcode, values, sorted(after), 1)
        for resource, cells, writes in accesses:
            self.latest[resource, writes][cells] = number
        return number

    def _needless(self, unit: Unit) -> set[int]:
        """An order that nothing asks for."""
        near = {Unit.LOAD: (Unit.COMPUTE,), Unit.STORE: (Unit.COMPUTE,)}
        wanted = near.get(unit, (Unit.LOAD, Unit.STORE))
        steps = [
            number for number, step in enumerate(self.builder.steps) if step.opcode.unit in wanted
        ]
        if not steps or self.rng.random() >= self._eagerness:
            return set()
        return {steps[-1 - int(self.rng.integers(min(4, len(steps))))]}

    # --- load --------------------------------------------------------------------------------

    def _prologue(self, sweeps: list[Kernel]) -> None:
        engine = self.engine
        fill = {
            "n_words": len(self.scratchpad),
            "target": self.scratchpad.start,
            "columns": (1 << engine.columns) - 1,
            "value": int(self.rng.integers(0, 1 << engine.activation_width)),
        }
        words = np.array(self.scratchpad)
        self._add(Opcode.FILL, fill, [(Resource.SCRATCHPAD, words, True)])
        self._kernels = [random_kernel(self.rng, engine) for _ in range(3)]
        for each in (*sweeps, *self._kernels):
            for opcode in (Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS):
                self._place(each, opcode)
        self._load_table(whole=True)
        words = np.array(self.output)
        walk = {"count_less_1_0": len(words) - 1, "write_base": int(words[0]), "write_step_0": 1}
        for sweep in sweeps:
            self._load_groups(sweep)
            self._load_records(sweep)
            self._command(sweep, walk, {"read_base": self.scratchpad.start})
        self._load_groups(self._kernels[0])
        self._load_records(self._kernels[0])

    def _load_activations(self) -> None:
        engine = self.engine
        window = self.scratchpad
        if self.rng.random() < 0.2:
            window = range(engine.bank_depth)
        row_bits = engine.channels_per_row * engine.activation_width
        run_bytes = self.run_bytes(len(window) * row_bits // 8)
        counts = self.counts(6)
        memory = self.runs(run_bytes, counts, free=False)
        target = self.words("target", window, -(-8 * run_bytes // row_bits), counts)
        if memory is None or target is None:
            return
        columns = int(self.rng.integers(1, 1 << engine.columns))
        self._add(
            Opcode.LOAD_ACTIVATIONS,
            {**memory, **target[0], "columns": columns},
            [
                (Resource.MEMORY, self.bytes_of(memory), False),
                (Resource.SCRATCHPAD, target[1], True),
            ],
        )

    def _fill(self) -> None:
        engine = self.engine
        n_words, counts = int(self.rng.integers(1, 6)), self.counts(6)
        target = self.words("target", self.scratchpad, n_words, counts)
        if target is None:
            return
        values = {
            **target[0],
            "n_words": n_words,
            "count_0": counts[0],
            "count_1": counts[1],
            "columns": int(self.rng.integers(1, 1 << engine.columns)),
            "value": int(self.rng.integers(0, 1 << engine.activation_width)),
        }
        self._add(Opcode.FILL, values, [(Resource.SCRATCHPAD, target[1], True)])

    def _load_groups(self, kernel: Kernel | None = None) -> None:
        kernel = kernel or self._kernels[self.rng.integers(len(self._kernels))]
        depth = self.engine.group_buffer_depth
        entry = self._entry(
            self._groups, kernel, len(kernel.groups), depth, lambda k: len(k.groups)
        )
        self._load_entries(Opcode.LOAD_GROUPS, kernel, entry)

    def _load_records(self, kernel: Kernel | None = None) -> None:
        kernel = kernel or self._kernels[self.rng.integers(len(self._kernels))]
        depth = self.engine.row_buffer_depth
        entry = self._entry(
            self._records, kernel, len(kernel.records), depth, lambda k: len(k.records)
        )
        self._load_entries(Opcode.LOAD_RECORDS, kernel, entry)

    def _load_table(self, *, whole: bool = False) -> None:
        """Some words of the activation tables, or all, on engines that have them."""
        engine = self.engine
        n_words = engine.activation_tables * engine.table_words
        if not n_words:
            return
        first = int(self.rng.integers(n_words))
        n = min(n_words - first, self.pick(1, 3, engine.table_words))
        if whole:
            first, n = 0, n_words
        n_bytes = 4 * n * self._kernels[0].records.shape[1]
        address = self.base + self.reserve(n_bytes)
        target = engine.table_base + first
        values = {"address": address, "run_bytes": n_bytes, "target": target}
        values |= {"count_0": 1, "count_1": 1, "memory_stride_0": 0, "memory_stride_1": 0}
        cells = np.arange(target, target + n)
        accesses = [
            (Resource.MEMORY, self.bytes_of(values), False),
            (Resource.RECORDS, cells, True),
        ]
        self._add(Opcode.LOAD_RECORDS, values, accesses)

    def _entry(self, loaded: list, kernel: Kernel, n: int, depth: int, size) -> int:
        """A place in the buffer; what it overwrites is no longer loaded."""
        entry = self.pick(0, depth - n, int(self.rng.integers(0, depth - n + 1)))
        loaded[:] = [
            (other, start)
            for other, start in loaded
            if start + size(other) <= entry or entry + n <= start
        ]
        loaded.append((kernel, entry))
        return entry

    def _place(self, kernel: Kernel, opcode: Opcode) -> None:
        """Put a kernel's words into memory: packed or spread, forwards or backwards."""
        words = kernel.groups if opcode is Opcode.LOAD_GROUPS else kernel.records
        n_word = words.shape[1] * 4
        step = n_word + self.pick(0, 0, 4, 1, 61)
        first = self.reserve(step * len(words))
        if self.rng.random() < 0.3:
            first, step = first + step * (len(words) - 1), -step
        for index, word in enumerate(words):
            place = first + index * step
            self.memory[place : place + n_word] = word.astype("<u4").view(np.uint8)
        self._places[kernel, opcode] = first, step

    def _load_entries(self, opcode: Opcode, kernel: Kernel, entry: int) -> None:
        """Load buffer words by one or two instructions, in one of several forms."""
        of_groups = opcode is Opcode.LOAD_GROUPS
        words = kernel.groups if of_groups else kernel.records
        resource = Resource.GROUPS if of_groups else Resource.RECORDS
        n_word = words.shape[1] * 4
        first, step = self._places[kernel, opcode]
        cut = int(self.rng.integers(1, len(words) + 1)) if self.rng.random() < 0.3 else len(words)
        for begin, end in ((0, cut), (cut, len(words))):
            n = end - begin
            if not n:
                continue
            values = {"address": self.base + first + begin * step, "target": entry + begin}
            if step == n_word and self.rng.random() < 0.5:
                values |= {"run_bytes": n * n_word, "count_0": 1, "count_1": 1}
                values |= {"memory_stride_0": 0, "memory_stride_1": 0}
            else:
                inner = max(k for k in range(1, n + 1) if n % k == 0 and k <= self.pick(1, 3, n))
                values |= {"run_bytes": n_word, "count_0": inner, "count_1": n // inner}
                values |= {"memory_stride_0": step, "memory_stride_1": inner * step}
                values |= {"target_stride_0": 1, "target_stride_1": inner}
            self._add(
                opcode,
                values,
                [
                    (Resource.MEMORY, self.bytes_of(values), False),
                    (resource, np.arange(entry + begin, entry + end), True),
                ],
            )

    # --- compute and store -------------------------------------------------------------------

    def _sync(self) -> None:
        self._add(Opcode.SYNC, {}, [])

    def _run(self) -> None:
        rng = self.rng
        records = [kernel for kernel, _ in self._records]
        ready = [kernel for kernel, _ in self._groups if kernel in records]
        if not ready:
            return
        kernel = ready[rng.integers(len(ready))]
        # Some bundles that follow each other; the tail may come with the last, or alone.
        has_tail = kernel.n_tail > 0
        first = int(rng.integers(0, kernel.n_bundles + has_tail))
        last = min(int(rng.integers(first, kernel.n_bundles + 1)) + 1, kernel.n_bundles)
        tail = has_tail and last == kernel.n_bundles and (first == last or rng.random() < 0.5)
        limit = 4 if tail else 8
        counts = [*self.counts(limit), 1]
        rng.shuffle(counts)
        n_positions = int(np.prod(counts))
        write = self.positions("write", counts, self.output, kernel.n_words)
        read = self.positions("read", counts, self.scratchpad, kernel.span)
        if write is None or read is None:
            return
        fields = {f"count_less_1_{i}": int(count) - 1 for i, count in enumerate(counts)}
        n_tail = kernel.n_tail * n_positions
        goes_on = bool(rng.random() < 0.5) and self._chain + n_tail + 3 <= MAX_CHAIN
        self._chain = (self._chain * goes_on + n_tail) if tail else 0
        self._command(
            kernel,
            fields | write,
            read | {"continues": int(goes_on), "signed_input": int(rng.integers(2))},
            bundles=(first, last),
            tail=tail,
        )

    def _command(
        self,
        kernel: Kernel,
        walk: dict[str, int],
        rest: dict[str, int],
        *,
        bundles: tuple[int, int] | None = None,
        tail: bool = False,
    ) -> None:
        """Add a run of some of a kernel's bundles."""
        first, last = bundles or (0, kernel.n_bundles)
        group_base = next(start for k, start in self._groups if k is kernel)
        record_base = next(start for k, start in self._records if k is kernel)
        group_stop = len(kernel.groups) if tail else int(kernel.group_ptr[last])
        group, record = int(kernel.group_ptr[first]), int(kernel.record_ptr[first])
        n_groups, n_records = group_stop - group, int(kernel.record_ptr[last]) - record
        limit = 1 << self.engine.activation_width
        low = self.pick(0, -limit // 2, int(self.rng.integers(-limit, limit)))
        values = walk | rest
        values |= {"group_base": group_base + group, "n_groups": n_groups}
        values |= {"record_base": record_base + record if n_records else 0, "n_records": n_records}
        values |= {"low": low, "high": max(low, self.pick(limit - 1, limit // 2 - 1))}
        counts = tuple(values.get(f"count_less_1_{i}", 0) + 1 for i in range(3))
        engine = self.engine
        table = int(self.rng.integers(engine.activation_tables + 1))
        values |= {"table": table}
        cells = engine.table_base + (table - 1) * engine.table_words
        cells = np.arange(cells, cells + engine.table_words if table else cells)

        def words(kind: str, depth: int, n_words: int) -> NDArray[np.int64]:
            steps = tuple(values.get(f"{kind}_step_{i}", 0) for i in range(3))
            return spread(walk_positions(values[f"{kind}_base"], counts, steps, depth), n_words)

        self._add(
            Opcode.RUN,
            values,
            [
                (Resource.GROUPS, np.arange(n_groups) + group_base + group, False),
                (Resource.RECORDS, np.arange(n_records) + record_base + record, False),
                (Resource.RECORDS, cells, False),
                (Resource.SCRATCHPAD, words("read", self.engine.bank_depth, kernel.span), False),
                (Resource.OUTPUT, words("write", self.engine.output_depth, kernel.n_words), True),
            ],
        )

    def _store(self, *, whole: bool = False) -> None:
        engine = self.engine
        row_bits = engine.channels_per_row * engine.activation_width
        run_bytes = self.run_bytes(len(self.output) * row_bits // 8)
        counts = (1, 1) if whole else self.counts(6)
        if whole:
            run_bytes = len(self.output) * row_bits // 8
        memory = self.runs(run_bytes, counts, free=True)
        source = self.words("source", self.output, -(-8 * run_bytes // row_bits), counts)
        if memory is None or source is None:
            return
        column = int(self.rng.integers(0, engine.columns))
        self._add(
            Opcode.STORE,
            {**memory, **source[0], "column": column},
            [
                (Resource.OUTPUT, source[1], False),
                (Resource.MEMORY, self.bytes_of(memory), True),
            ],
        )
