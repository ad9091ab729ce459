"""Registers of the core's control as arrays, for :mod:`gshw.program_kernel`."""

import numpy as np

LOAD, COMPUTE, STORE = 0, 1, 2
"""Units, as ``INSTRUCTION.unit``."""
ACTIVATIONS, GROUPS, RECORDS, FILL = 0, 1, 2, 3
"""Kinds of instructions of load."""
SYNC, RUN = 0, 1
"""Kinds of instructions of compute."""
MAX_BURSTS, MAX_TURNS = 64, 128
"""Most bursts in flight, and requests on their way to the reader, that a bus can have."""


def _record(names: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in names.split()])


INSTRUCTION = _record(
    "unit kind pop_previous pop_next push_previous push_next address run_bytes count_0 count_1 "
    "stride_0 stride_1 n_words n_cycles n_rows n_units"
)
PARAMETERS = _record(
    "log2_bytes block_beats outstanding read_latency write_latency interval "
    "words_per_beat chunk n_slots max_in_flight load_words compute_words store_words "
    "parts_0 parts_1 parts_2 units_per_row units_per_beat cycle_limit"
)
COUNTERS = _record(
    "load_busy compute_busy store_busy compute_waits_load compute_waits_store load_waits_compute "
    "store_waits_compute load_waits_memory store_waits_memory read_beats write_beats"
)
_FETCH = _record(
    "address n_asked request chunks has_chunks rest known counted header_good in_buffer ended "
    "written taken beat held part valid state word in_header number commit"
)
_QUEUE = _record(
    "n_committed occupied settled read_word loaded valid n_taken n_done push_previous push_next "
    "tokens_previous tokens_next"
)
_COMPUTE = _record("checked is_run idle synced done_at")
_LOAD = _record(
    "ready starting_0 starting_1 active request address line line_left lines_left item part left "
    "finishing done"
)
_STORE = _record(
    "ready starting_0 starting_1 active request address line line_left lines_left item rows "
    "rows_left read_valid response in_flight waiting done unit packed spare beat"
)
_ARBITER = _record("request address n_bytes written read")
_ISSUER = _record(
    "held held_address held_bytes ended ended_address ended_last left beat last_beat start end "
    "issued retired"
)
_READER = _record("here again emit final blocked spare_final valid out_final first n_beats next_at")
_WRITER = _record("here blocked active n_left spill valid final planned answered next_at")
BURST = _record("n_beats last extra aligned spill ready_at")
_UNITS = (_FETCH, _QUEUE, _QUEUE, _QUEUE, _COMPUTE, _LOAD, _STORE, _ARBITER)
_UNITS += (_ISSUER, _READER, _ISSUER, _WRITER)


def new_registers(program_address: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """All registers as words, and the records of the units in them, in the cycle after a start.

    Returns
    -------
    tuple
        Words, int64; and arrays of shape (1,): fetch, the queues of load, compute and store, the
        units, arbiter, issuer and reader, issuer and writer.
    """
    sizes = [dtype.itemsize // 8 for dtype in _UNITS]
    ends = np.cumsum(sizes)
    words = np.zeros(ends[-1], dtype=np.int64)
    units = tuple(
        words[end - size : end].view(dtype)
        for dtype, size, end in zip(_UNITS, sizes, ends, strict=True)
    )
    fetch, _, _, _, compute, load, store, _, _, reader, _, _ = units
    fetch["address"], fetch["n_asked"], fetch["request"] = program_address, 1, 1
    fetch["in_buffer"] = fetch["in_header"] = 1
    compute["idle"] = load["ready"] = store["ready"] = reader["first"] = 1
    return words, units
