"""Random places and shapes of transfers and walks that fit a memory and its buffers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gshw.config import Config
from gshw.engine_model import walk_positions
from gshw.program_order import Resource

_TRIES = 200


class Shapes:
    """Draws fields of instructions.

    Parameters
    ----------
    base, n_bytes
        The memory.
    window_words, feedback
        See :func:`sim_tests.programs.random_program`.

    Attributes
    ----------
    memory
        Contents before the program, but for the program itself.
    reserved
        Bool per byte: not for stores.
    latest
        By resource, and whether it is written: the last step that used each cell, or -1.
    scratchpad, output
        Words that are known and may be used.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        config: Config,
        base: int,
        n_bytes: int,
        window_words: int,
        feedback: bool,
    ) -> None:
        self.rng, self.config, self.engine = rng, config, config.engine
        self.base, self.feedback = base, feedback
        self.memory = rng.integers(0, 256, n_bytes).astype(np.uint8)
        self.reserved = np.zeros(n_bytes, dtype=np.bool_)
        engine = self.engine
        n_cells = {
            Resource.SCRATCHPAD: engine.bank_depth,
            Resource.GROUPS: engine.group_buffer_depth,
            Resource.RECORDS: engine.record_load_depth,
            Resource.OUTPUT: engine.output_depth,
            Resource.MEMORY: n_bytes,
        }
        self.latest = {
            (resource, writes): np.full(n, -1, dtype=np.int64)
            for resource, n in n_cells.items()
            for writes in (False, True)
        }
        self.scratchpad = self._window(engine.bank_depth, window_words)
        self.output = self._window(engine.output_depth, window_words)
        self._recent: list[int] = []

    def _window(self, depth: int, n_words: int) -> range:
        n_words = min(n_words, depth)
        # The last word of a buffer is one that a counter may get wrong.
        start = self.pick(0, depth - n_words, int(self.rng.integers(0, depth - n_words + 1)))
        return range(start, start + n_words)

    def pick(self, *choices: int) -> int:
        return int(choices[self.rng.integers(len(choices))])

    def reserve(self, n_bytes: int) -> int:
        """Place of so many bytes that nothing else uses, on any alignment."""
        for _ in range(_TRIES * _TRIES):
            start = int(self.rng.integers(0, self.memory.size - n_bytes + 1))
            if self.rng.random() < 0.3:
                start &= -64
            if not self.reserved[start : start + n_bytes].any():
                self.reserved[start : start + n_bytes] = True
                return start
        raise AssertionError(f"no {n_bytes} of {self.memory.size} bytes are free")

    def counts(self, limit: int) -> tuple[int, int]:
        inner = int(self.rng.integers(1, limit + 1))
        outer = int(self.rng.integers(1, limit // inner + 1))
        return (inner, outer) if self.rng.random() < 0.7 else (outer, inner)

    def run_bytes(self, most: int) -> int:
        """Bytes of a run: a few, about a row, a part of a burst, some bursts."""
        n_code = max(1, self.engine.activation_width // 8)
        row = self.engine.channels_per_row * self.engine.activation_width // 8
        burst = self.config.bus.data_bytes * self.config.bus.max_burst
        n_bytes = self.pick(
            int(self.rng.integers(1, 9)),
            row * int(self.rng.integers(1, 4)) + int(self.rng.integers(-1, 2)) * n_code,
            int(self.rng.integers(1, 4 * row + 1)),
            int(self.rng.integers(1, min(2 * burst, 600) + 1)),
        )
        return max(1, min(n_bytes, most) // n_code) * n_code

    def _strides(self, run_bytes: int) -> tuple[int, int]:
        """Bytes from run to run: packed, the same again, overlapping, backwards, far away."""
        return tuple(  # type: ignore[return-value]
            self.pick(
                run_bytes,
                0,
                -run_bytes,
                run_bytes // 2 + 1,
                int(self.rng.integers(-300, 300)),
                4096,
            )
            for _ in range(2)
        )

    def runs(self, n_bytes: int, counts: tuple[int, int], *, free: bool) -> dict[str, int] | None:
        """Fields that say where in memory runs lie, all inside; ``free``: only in free bytes."""
        rng = self.rng
        for _ in range(_TRIES):
            strides = self._strides(n_bytes)
            # Many begin where another began, or shortly before a page ends: bursts must not cross.
            place = int(rng.integers(0, self.memory.size))
            if self._recent and rng.random() < 0.4:
                place = self.pick(*self._recent) + int(rng.integers(-20, 20))
            elif rng.random() < 0.4:
                place = (place & -4096) - int(rng.integers(0, 24))
            starts = place + walk(counts, strides)
            if starts.min() < 0 or starts.max() + n_bytes > self.memory.size:
                continue
            used = spread(starts, n_bytes)
            if free and self.reserved[used].any():
                continue
            stored = self.latest[Resource.MEMORY, True][used] >= 0
            if not self.feedback and not free and stored.any():
                continue
            self._recent.append(place)
            return {
                "address": self.base + place,
                "run_bytes": n_bytes,
                "count_0": counts[0],
                "count_1": counts[1],
                "memory_stride_0": strides[0],
                "memory_stride_1": strides[1],
            }
        return None

    def words(
        self, name: str, window: range, n_words: int, counts: tuple[int, int]
    ) -> tuple[dict[str, int], NDArray[np.int64]] | None:
        """Fields that say where in a buffer runs lie, all in the window; and the words."""
        for _ in range(_TRIES):
            strides = [self.pick(0, 1, n_words, int(self.rng.integers(0, 9))) for _ in range(2)]
            start = int(self.rng.integers(window.start, window.stop))
            starts = start + walk(counts, strides)
            if starts.max() + n_words <= window.stop:
                fields = {f"{name}_stride_{i}": stride for i, stride in enumerate(strides)}
                return fields | {name: start}, spread(starts, n_words)
        return None

    def bytes_of(self, fields: dict[str, int]) -> NDArray[np.int64]:
        counts = fields["count_0"], fields["count_1"]
        strides = fields["memory_stride_0"], fields["memory_stride_1"]
        return spread(fields["address"] - self.base + walk(counts, strides), fields["run_bytes"])

    def positions(
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


def walk(counts: Sequence[int], strides: Sequence[int]) -> NDArray[np.int64]:
    """Distance of every run from the first, inner loop first."""
    inner, outer = (np.arange(count) * stride for count, stride in zip(counts, strides))
    return (outer[:, None] + inner).reshape(-1)


def spread(starts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """All cells of runs of ``n`` cells."""
    return (starts[:, None] + np.arange(n)).reshape(-1)
