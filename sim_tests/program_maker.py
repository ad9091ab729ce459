"""Draws random instructions that fit together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.engine_model import walk_positions
from gshw.program import INSTRUCTION_BYTES, Opcode, Unit
from gshw.program_builder import ProgramBuilder
from gshw.program_order import Resource
from sim_tests.kernels import MAX_CHAIN, Kernel, random_kernel, whole_word_kernel

_TRIES = 200
_Access = tuple[Resource, NDArray[np.int64], bool]
"""What is used, which cells, and whether they are written."""


class ProgramMaker:
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
    memory
        Contents before the program, but for the program itself.
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
        self.rng, self.config, self.engine = rng, config, config.engine
        self.base, self.n_steps, self.feedback = base, n_steps, feedback
        self.memory = rng.integers(0, 256, n_bytes).astype(np.uint8)
        self.reserved = np.zeros(n_bytes, dtype=np.bool_)
        self.builder = ProgramBuilder()
        engine = self.engine
        self.scratchpad = self._window(engine.bank_depth, window_words)
        self.output = self._window(engine.output_depth, window_words)
        n_cells = {
            Resource.SCRATCHPAD: engine.bank_depth,
            Resource.GROUPS: engine.group_buffer_depth,
            Resource.RECORDS: engine.row_buffer_depth,
            Resource.OUTPUT: engine.output_depth,
            Resource.MEMORY: n_bytes,
        }
        self.latest = {
            (resource, writes): np.full(n, -1, dtype=np.int64)
            for resource, n in n_cells.items()
            for writes in (False, True)
        }
        self.eagerness = rng.choice([0.0, 0.1, 0.5])
        # Kernel and its first entry, as long as all of it is there.
        self.kernels: list[Kernel] = []
        self.groups: list[tuple[Kernel, int]] = []
        self.records: list[tuple[Kernel, int]] = []
        self.chain = 0
        self.recent: list[int] = []
        # Where a kernel's first word lies in memory, and how far it is to the next.
        self.places: dict[tuple[Kernel, Opcode], tuple[int, int]] = {}

    def _window(self, depth: int, n_words: int) -> range:
        n_words = min(n_words, depth)
        # The last word of a buffer is one that a counter may get wrong.
        start = self._pick(0, depth - n_words, int(self.rng.integers(0, depth - n_words + 1)))
        return range(start, start + n_words)

    def _pick(self, *choices: int) -> int:
        return int(choices[self.rng.integers(len(choices))])

    def make(self) -> int:
        """Draw all instructions; returns the place of the program in the memory."""
        # Every step may need a sync before it.
        address = self._reserve(INSTRUCTION_BYTES * (2 * self.n_steps + 20))
        self._prologue()
        steps = (
            (self._load_activations, 5),
            (self._fill, 2),
            (self._load_groups, 2),
            (self._load_records, 2),
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

    def _reserve(self, n_bytes: int) -> int:
        """Place of so many bytes that nothing else uses, on any alignment."""
        while True:
            start = int(self.rng.integers(0, self.memory.size - n_bytes + 1))
            if self.rng.random() < 0.3:
                start &= -64
            if not self.reserved[start : start + n_bytes].any():
                self.reserved[start : start + n_bytes] = True
                return start

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
        if not steps or self.rng.random() >= self.eagerness:
            return set()
        return {steps[-1 - int(self.rng.integers(min(4, len(steps))))]}

    # --- shapes ------------------------------------------------------------------------------

    def _counts(self, limit: int) -> tuple[int, int]:
        inner = int(self.rng.integers(1, limit + 1))
        outer = int(self.rng.integers(1, limit // inner + 1))
        return (inner, outer) if self.rng.random() < 0.7 else (outer, inner)

    def _run_bytes(self, most: int) -> int:
        """Bytes of a run: a few, about a row, a part of a burst, some bursts."""
        n_code = max(1, self.engine.activation_width // 8)
        row = self.engine.channels_per_row * self.engine.activation_width // 8
        burst = self.config.bus.data_bytes * self.config.bus.max_burst
        n_bytes = self._pick(
            int(self.rng.integers(1, 9)),
            row * int(self.rng.integers(1, 4)) + int(self.rng.integers(-1, 2)) * n_code,
            int(self.rng.integers(1, 4 * row + 1)),
            int(self.rng.integers(1, min(2 * burst, 600) + 1)),
        )
        return max(1, min(n_bytes, most) // n_code) * n_code

    def _strides(self, run_bytes: int) -> tuple[int, int]:
        """Bytes from run to run: packed, the same again, overlapping, backwards, far away."""
        return tuple(  # type: ignore[return-value]
            self._pick(
                run_bytes,
                0,
                -run_bytes,
                run_bytes // 2 + 1,
                int(self.rng.integers(-300, 300)),
                4096,
            )
            for _ in range(2)
        )

    def _runs(self, n_bytes: int, counts: tuple[int, int], *, free: bool) -> dict[str, int] | None:
        """Fields that say where in memory runs lie, all inside; ``free``: only in free bytes."""
        rng = self.rng
        for _ in range(_TRIES):
            strides = self._strides(n_bytes)
            # Many begin where another began, or shortly before a page ends: bursts must not cross.
            place = int(rng.integers(0, self.memory.size))
            if self.recent and rng.random() < 0.4:
                place = self._pick(*self.recent) + int(rng.integers(-20, 20))
            elif rng.random() < 0.4:
                place = (place & -4096) - int(rng.integers(0, 24))
            starts = place + _walk(counts, strides)
            if starts.min() < 0 or starts.max() + n_bytes > self.memory.size:
                continue
            used = _spread(starts, n_bytes)
            if free and self.reserved[used].any():
                continue
            stored = self.latest[Resource.MEMORY, True][used] >= 0
            if not self.feedback and not free and stored.any():
                continue
            self.recent.append(place)
            return {
                "address": self.base + place,
                "run_bytes": n_bytes,
                "count_0": counts[0],
                "count_1": counts[1],
                "memory_stride_0": strides[0],
                "memory_stride_1": strides[1],
            }
        return None

    def _words(
        self, name: str, window: range, n_words: int, counts: tuple[int, int]
    ) -> tuple[dict[str, int], NDArray[np.int64]] | None:
        """Fields that say where in a buffer runs lie, all in the window; and the words."""
        for _ in range(_TRIES):
            strides = [self._pick(0, 1, n_words, int(self.rng.integers(0, 9))) for _ in range(2)]
            start = int(self.rng.integers(window.start, window.stop))
            starts = start + _walk(counts, strides)
            if starts.max() + n_words <= window.stop:
                fields = {f"{name}_stride_{i}": stride for i, stride in enumerate(strides)}
                return fields | {name: start}, _spread(starts, n_words)
        return None

    def _bytes_of(self, fields: dict[str, int]) -> NDArray[np.int64]:
        counts = fields["count_0"], fields["count_1"]
        strides = fields["memory_stride_0"], fields["memory_stride_1"]
        return _spread(fields["address"] - self.base + _walk(counts, strides), fields["run_bytes"])

    # --- load --------------------------------------------------------------------------------

    def _prologue(self) -> None:
        engine = self.engine
        fill = {
            "n_words": len(self.scratchpad),
            "target": self.scratchpad.start,
            "columns": (1 << engine.columns) - 1,
            "value": int(self.rng.integers(0, 1 << engine.activation_width)),
        }
        words = np.array(self.scratchpad)
        self._add(Opcode.FILL, fill, [(Resource.SCRATCHPAD, words, True)])
        kernel = whole_word_kernel(self.rng, engine)
        self.kernels = [random_kernel(self.rng, engine) for _ in range(3)]
        for each in (kernel, *self.kernels):
            for opcode in (Opcode.LOAD_GROUPS, Opcode.LOAD_RECORDS):
                self._place(each, opcode)
        for load in (self._load_groups, self._load_records):
            load(kernel)
        words = np.array(self.output)
        self._command(
            kernel,
            {"count_less_1_0": len(words) - 1, "write_base": int(words[0]), "write_step_0": 1},
            {"read_base": self.scratchpad.start},
        )
        for load in (self._load_groups, self._load_records):
            load(self.kernels[0])

    def _load_activations(self) -> None:
        engine = self.engine
        window = self.scratchpad
        if self.rng.random() < 0.2:
            window = range(engine.bank_depth)
        row_bits = engine.channels_per_row * engine.activation_width
        run_bytes = self._run_bytes(len(window) * row_bits // 8)
        counts = self._counts(6)
        memory = self._runs(run_bytes, counts, free=False)
        target = self._words("target", window, -(-8 * run_bytes // row_bits), counts)
        if memory is None or target is None:
            return
        columns = int(self.rng.integers(1, 1 << engine.columns))
        self._add(
            Opcode.LOAD_ACTIVATIONS,
            {**memory, **target[0], "columns": columns},
            [
                (Resource.MEMORY, self._bytes_of(memory), False),
                (Resource.SCRATCHPAD, target[1], True),
            ],
        )

    def _fill(self) -> None:
        engine = self.engine
        n_words, counts = int(self.rng.integers(1, 6)), self._counts(6)
        target = self._words("target", self.scratchpad, n_words, counts)
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
        kernel = kernel or self.kernels[self.rng.integers(len(self.kernels))]
        depth = self.engine.group_buffer_depth
        entry = self._entry(self.groups, kernel, len(kernel.groups), depth, lambda k: len(k.groups))
        self._load_entries(Opcode.LOAD_GROUPS, kernel, entry)

    def _load_records(self, kernel: Kernel | None = None) -> None:
        kernel = kernel or self.kernels[self.rng.integers(len(self.kernels))]
        depth = self.engine.row_buffer_depth
        entry = self._entry(
            self.records, kernel, len(kernel.records), depth, lambda k: len(k.records)
        )
        self._load_entries(Opcode.LOAD_RECORDS, kernel, entry)

    def _entry(self, loaded: list, kernel: Kernel, n: int, depth: int, size) -> int:
        """A place in the buffer; what it overwrites is no longer loaded."""
        entry = self._pick(0, depth - n, int(self.rng.integers(0, depth - n + 1)))
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
        step = n_word + self._pick(0, 0, 4, 1, 61)
        first = self._reserve(step * len(words))
        if self.rng.random() < 0.3:
            first, step = first + step * (len(words) - 1), -step
        for index, word in enumerate(words):
            place = first + index * step
            self.memory[place : place + n_word] = word.astype("<u4").view(np.uint8)
        self.places[kernel, opcode] = first, step

    def _load_entries(self, opcode: Opcode, kernel: Kernel, entry: int) -> None:
        """Load buffer words by one or two instructions, in one of several forms."""
        of_groups = opcode is Opcode.LOAD_GROUPS
        words = kernel.groups if of_groups else kernel.records
        resource = Resource.GROUPS if of_groups else Resource.RECORDS
        n_word = words.shape[1] * 4
        first, step = self.places[kernel, opcode]
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
                inner = max(k for k in range(1, n + 1) if n % k == 0 and k <= self._pick(1, 3, n))
                values |= {"run_bytes": n_word, "count_0": inner, "count_1": n // inner}
                values |= {"memory_stride_0": step, "memory_stride_1": inner * step}
                values |= {"target_stride_0": 1, "target_stride_1": inner}
            self._add(
                opcode,
                values,
                [
                    (Resource.MEMORY, self._bytes_of(values), False),
                    (resource, np.arange(entry + begin, entry + end), True),
                ],
            )

    # --- compute and store -------------------------------------------------------------------

    def _sync(self) -> None:
        self._add(Opcode.SYNC, {}, [])

    def _run(self) -> None:
        rng = self.rng
        records = [kernel for kernel, _ in self.records]
        ready = [kernel for kernel, _ in self.groups if kernel in records]
        if not ready:
            return
        kernel = ready[rng.integers(len(ready))]
        # Some bundles that follow each other; the tail may come with the last, or alone.
        has_tail = kernel.n_tail > 0
        first = int(rng.integers(0, kernel.n_bundles + has_tail))
        last = min(int(rng.integers(first, kernel.n_bundles + 1)) + 1, kernel.n_bundles)
        tail = has_tail and last == kernel.n_bundles and (first == last or rng.random() < 0.5)
        limit = 4 if tail else 8
        counts = [*self._counts(limit), 1]
        rng.shuffle(counts)
        n_positions = int(np.prod(counts))
        write = self._positions("write", counts, self.output, kernel.n_words)
        read = self._positions("read", counts, self.scratchpad, kernel.span)
        if write is None or read is None:
            return
        fields = {f"count_less_1_{i}": int(count) - 1 for i, count in enumerate(counts)}
        n_tail = kernel.n_tail * n_positions
        goes_on = bool(rng.random() < 0.5) and self.chain + n_tail + 3 <= MAX_CHAIN
        self.chain = (self.chain * goes_on + n_tail) if tail else 0
        self._command(
            kernel,
            fields | write,
            read | {"continues": int(goes_on), "signed_input": int(rng.integers(2))},
            bundles=(first, last),
            tail=tail,
        )

    def _positions(
        self, kind: str, counts: list[int], window: range, n_words: int
    ) -> dict[str, int] | None:
        """Base and steps of a walk whose words all lie in the window."""
        depth = self.engine.output_depth if kind == "write" else self.engine.bank_depth
        for _ in range(_TRIES):
            base = int(self.rng.integers(window.start, window.stop))
            steps = []
            travel = 0
            for count in counts:
                stride = int(self.rng.integers(-4, 9))
                steps.append((stride - travel) % depth)
                travel += (count - 1) * stride
            words = walk_positions(base, tuple(counts), tuple(steps), depth)
            if words.min() >= window.start and words.max() + n_words <= window.stop:
                fields = {f"{kind}_step_{i}": step for i, step in enumerate(steps)}
                return fields | {f"{kind}_base": base}
        return None

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
        group_base = next(start for k, start in self.groups if k is kernel)
        record_base = next(start for k, start in self.records if k is kernel)
        group_stop = len(kernel.groups) if tail else int(kernel.group_ptr[last])
        group, record = int(kernel.group_ptr[first]), int(kernel.record_ptr[first])
        n_groups, n_records = group_stop - group, int(kernel.record_ptr[last]) - record
        limit = 1 << self.engine.activation_width
        low = self._pick(0, -limit // 2, int(self.rng.integers(-limit, limit)))
        values = walk | rest
        values |= {"group_base": group_base + group, "n_groups": n_groups}
        values |= {"record_base": record_base + record if n_records else 0, "n_records": n_records}
        values |= {"low": low, "high": max(low, self._pick(limit - 1, limit // 2 - 1))}
        counts = tuple(values.get(f"count_less_1_{i}", 0) + 1 for i in range(3))

        def words(kind: str, depth: int, n_words: int) -> NDArray[np.int64]:
            steps = tuple(values.get(f"{kind}_step_{i}", 0) for i in range(3))
            return _spread(walk_positions(values[f"{kind}_base"], counts, steps, depth), n_words)

        self._add(
            Opcode.RUN,
            values,
            [
                (Resource.GROUPS, np.arange(n_groups) + group_base + group, False),
                (Resource.RECORDS, np.arange(n_records) + record_base + record, False),
                (Resource.SCRATCHPAD, words("read", self.engine.bank_depth, kernel.span), False),
                (Resource.OUTPUT, words("write", self.engine.output_depth, kernel.n_words), True),
            ],
        )

    def _store(self, *, whole: bool = False) -> None:
        engine = self.engine
        row_bits = engine.channels_per_row * engine.activation_width
        run_bytes = self._run_bytes(len(self.output) * row_bits // 8)
        counts = (1, 1) if whole else self._counts(6)
        if whole:
            run_bytes = len(self.output) * row_bits // 8
        memory = self._runs(run_bytes, counts, free=True)
        source = self._words("source", self.output, -(-8 * run_bytes // row_bits), counts)
        if memory is None or source is None:
            return
        column = int(self.rng.integers(0, engine.columns))
        self._add(
            Opcode.STORE,
            {**memory, **source[0], "column": column},
            [
                (Resource.OUTPUT, source[1], False),
                (Resource.MEMORY, self._bytes_of(memory), True),
            ],
        )


def _walk(counts: Sequence[int], strides: Sequence[int]) -> NDArray[np.int64]:
    """Distance of every run from the first, inner loop first."""
    inner, outer = (np.arange(count) * stride for count, stride in zip(counts, strides))
    return (outer[:, None] + inner).reshape(-1)


def _spread(starts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """All cells of runs of ``n`` cells."""
    return (starts[:, None] + np.arange(n)).reshape(-1)
