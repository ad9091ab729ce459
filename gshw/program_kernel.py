"""The control of the core, register by register, at a memory of fixed timing. Compiled by numba.

What moves (instructions, tokens, requests, bursts, beats, rows) is stepped cycle by cycle; what is
in it is not there. Every unit is a record of its registers, named as in :mod:`rtl_gen`, whose
docstrings state the timing. A step gets as arguments the signals that others drive in the same
cycle, so the order of the steps does not matter.

Where nothing can change before a known cycle (the end of a command, a beat of the memory), all
cycles up to it are skipped at once.
"""

import numpy as np
from numba import njit

from gshw.program_state import (
    ACTIVATIONS,
    BURST,
    COMPUTE,
    FILL,
    GROUPS,
    LOAD,
    MAX_BURSTS,
    MAX_TURNS,
    RUN,
    STORE,
    new_registers,
)

_DECODE, _CHOOSE, _WORDS, _CHECK = 0, 1, 2, 3
_INSTRUCTION_BYTES, _INSTRUCTION_WORDS = 64, 16
_QUIET_CYCLES = 6
"""Cycles without a transfer after which a standstill is looked for."""
_STILL_CYCLES = 8
"""How often a standstill of fetch and queues is looked for."""

FINISHED, DEADLOCK, LIMIT = 0, 1, 2
"""How a program ended."""


def simulate(
    program_address: int, parameters: np.ndarray, instructions: np.ndarray, counters: np.ndarray
) -> tuple[int, int, np.ndarray]:
    """Run a legal program, from the cycle after its start on.

    Parameters
    ----------
    program_address
        Of its header.
    parameters, instructions, counters
        Records of :mod:`gshw.program_state`: ``PARAMETERS``, shape (1,); ``INSTRUCTION``, in the
        program's order; ``COUNTERS``, shape (1,), which are added to.

    Returns
    -------
    tuple
        How it ended; its cycles; and, shape (n_instructions, 2), the cycles in which each
        instruction was taken by its unit and was done, the start being cycle 0.
    """
    registers, units = new_registers(program_address)
    n_control = sum(unit.nbytes for unit in units[:4]) // registers.itemsize
    lists = np.zeros((3, len(instructions) + 1), dtype=np.int64)
    for unit in (LOAD, COMPUTE, STORE):
        own = np.flatnonzero(instructions["unit"] == unit)
        lists[unit, : own.size] = own
    times = np.zeros((len(instructions), 2), dtype=np.int64)
    bursts = np.zeros((2, MAX_BURSTS), dtype=BURST)
    turns = np.zeros(MAX_TURNS, dtype=np.int64)
    status, n_cycles = _run(
        parameters, instructions, counters, registers, n_control, units, lists, times, bursts, turns
    )
    return status, n_cycles, times


@njit(cache=True)
def _step_fetch(f, p, instructions, asked, arrived, room):
    whole = f.has_chunks
    amount = p.chunk if whole else f.rest
    ask = f.known and f.in_buffer <= p.chunk and not f.request and amount > 0
    writing = f.state == _WORDS
    consumed = writing and f.valid and f.word == _INSTRUCTION_WORDS - 1
    move = f.held and (not f.valid or writing)
    finish = move and f.part == p.words_per_beat - 1
    pass_on = f.beat and (not f.held or finish)
    read = f.written != f.taken and (not f.beat or pass_on)

    f.ended = f.known and not (whole or f.rest or f.in_buffer or f.request)
    f.has_chunks = f.chunks != 0
    if f.header_good:
        f.chunks, f.rest = len(instructions) // p.chunk, len(instructions) % p.chunk
    elif ask:
        if whole:
            f.chunks -= 1
        else:
            f.rest = 0
    f.known = f.known or f.counted
    f.counted = f.header_good
    if asked:
        f.request = 0
        f.address += f.n_asked * _INSTRUCTION_BYTES
    elif ask:
        f.request = 1
        f.n_asked = amount
    f.in_buffer += (amount if ask else 0) - (1 if consumed else 0)

    if writing and f.valid:
        f.word = (f.word + 1) % _INSTRUCTION_WORDS
    f.commit = f.header_good = 0
    if f.state == _DECODE:
        if f.valid:
            f.state = _CHOOSE
    elif f.state == _CHOOSE:
        if f.in_header or room:
            f.state = _WORDS
    elif f.state == _WORDS:
        if consumed:
            f.state = _CHECK
    else:
        f.state = _DECODE
        if f.in_header:
            f.header_good = 1
            f.in_header = 0
        else:
            f.commit = 1
            f.number += 1

    if move:
        f.valid = 1
        f.part = 0 if finish else f.part + 1
    elif writing:
        f.valid = 0
    if pass_on:
        f.held = 1
    elif finish:
        f.held = 0
    if read:
        f.taken += 1
        f.beat = 1
    elif pass_on:
        f.beat = 0
    f.written += arrived


@njit(cache=True)
def _step_queue(q, p, n_words, hand, oldest, committed, taken, done, from_previous, from_next):
    """Returns bit 0: waits for the unit before; bit 1: for the unit after."""
    lacks_previous = hand.pop_previous and not q.tokens_previous
    lacks_next = hand.pop_next and not q.tokens_next
    in_flight = q.n_taken - q.n_done
    open_ = q.loaded and not q.valid
    waits = 0
    if open_ and not in_flight:
        waits = (1 if lacks_previous else 0) | (2 if lacks_next else 0)
    pop = open_ and not lacks_previous and not lacks_next and in_flight != p.max_in_flight
    step = q.n_committed > 0 and not q.occupied
    ended = step and q.read_word == n_words - 1

    q.tokens_previous += from_previous - (hand.pop_previous if pop else 0)
    q.tokens_next += from_next - (hand.pop_next if pop else 0)
    q.push_previous = oldest.push_previous if done else 0
    q.push_next = oldest.push_next if done else 0
    q.n_done += done
    q.n_taken += taken
    q.loaded = q.occupied and q.settled and not taken
    q.settled = q.occupied
    if ended:
        q.read_word = 0
        q.occupied = 1
    else:
        q.read_word += step
        if taken:
            q.occupied = 0
    q.n_committed += committed - (1 if ended else 0)
    if pop:
        q.valid = 1
    elif taken:
        q.valid = 0
    return waits


@njit(cache=True)
def _step_control(units, p, instructions, hands, oldest, taken, done, asked, arrived):
    """Fetch and queues; returns two bits per queue, as :func:`_step_queue`."""
    fetch = units[0][0]
    load, compute, store = units[1][0], units[2][0], units[3][0]
    commits = -1
    if fetch.commit:
        commits = instructions[fetch.number - 1].unit
    room = False
    if fetch.number < len(instructions):
        unit = instructions[fetch.number].unit
        queue = load if unit == LOAD else compute if unit == COMPUTE else store
        room = queue.n_committed < p.n_slots
    load_gives, store_gives = load.push_next, store.push_previous
    gives_load, gives_store = compute.push_previous, compute.push_next
    waits = _step_queue(
        load, p, p.load_words, instructions[hands[0]], instructions[oldest[0]],
        commits == LOAD, taken[0], done[0], 0, gives_load,
    )  # fmt: skip
    waits |= _step_queue(
        compute, p, p.compute_words, instructions[hands[1]], instructions[oldest[1]],
        commits == COMPUTE, taken[1], done[1], load_gives, store_gives,
    ) << 2  # fmt: skip
    waits |= _step_queue(
        store, p, p.store_words, instructions[hands[2]], instructions[oldest[2]],
        commits == STORE, taken[2], done[2], gives_store, 0,
    ) << 4  # fmt: skip
    _step_fetch(fetch, p, instructions, asked, arrived, room)
    return waits


@njit(cache=True)
def _walk(u, instruction):
    """Go to the next run of a load or store; whether there is one."""
    if u.line_left > 1:
        u.line_left -= 1
        u.address += instruction.stride_0
        return True
    u.lines_left -= 1
    u.line_left = instruction.count_0
    u.line += instruction.stride_1
    u.address = u.line
    return u.lines_left > 0


@njit(cache=True)
def _begin_walk(u, instruction):
    u.address = u.line = instruction.address
    u.line_left = instruction.count_0
    u.lines_left = instruction.count_1


@njit(cache=True)
def _n_parts(p, kind):
    if kind == ACTIVATIONS:
        return p.parts_0
    return p.parts_1 if kind == GROUPS else p.parts_2


@njit(cache=True)
def _step_load(u, p, instructions, accept, item, asked, beat, last):
    own = instructions[u.item]
    fills = u.active and own.kind == FILL
    ended = fills and u.left == 1
    finishing = u.finishing
    if u.active and beat and not fills:
        taken = u.part == _n_parts(p, own.kind) - 1
        u.part = 0 if taken else u.part + 1
        if taken and last:
            ended = u.left == 1
            u.left -= 1
    elif fills:
        u.left -= 1
    if u.starting_0:
        u.part = 0
        _begin_walk(u, own)
        u.request = own.kind != FILL
    elif asked:
        u.request = _walk(u, own)
    if u.starting_1:
        u.active = 1
        u.left = own.count_0 * own.count_1 * (own.n_words if own.kind == FILL else 1)
    elif ended:
        u.active = 0
    u.done = finishing
    u.finishing = ended
    u.starting_1 = u.starting_0
    u.starting_0 = accept
    if accept:
        u.ready = 0
        u.item = item
    elif finishing:
        u.ready = 1


@njit(cache=True)
def _step_store(u, p, instructions, accept, item, asked, beat_taken, writer_idle):
    own = instructions[u.item]
    move = not u.spare
    is_last = u.unit == own.n_units - 1
    row_ends = is_last or u.unit % p.units_per_row == p.units_per_row - 1
    beat_ends = is_last or u.unit % p.units_per_beat == p.units_per_beat - 1
    step = u.response and u.active and move
    row_ready = (move and row_ends) or not u.active
    read_moves = not u.response or row_ready
    row_asked = u.rows and read_moves
    answered = step and row_ends
    sent = u.active and not (
        u.request or u.rows or u.in_flight or u.packed or u.spare or u.beat
    )  # fmt: skip
    out_moves = not u.beat or beat_taken
    done = u.waiting and writer_idle

    packed = u.packed
    if move:
        u.packed = step and beat_ends
    if out_moves:
        u.beat = u.spare or packed
        u.spare = 0
    elif move:
        u.spare = packed
    if step:
        u.unit = 0 if is_last else u.unit + 1
    if read_moves:
        u.response = u.read_valid
        u.read_valid = u.rows
    u.in_flight += (1 if row_asked else 0) - (1 if answered else 0)
    if row_asked:
        u.rows_left -= 1
        u.rows = u.rows_left > 0
    if u.starting_0:
        _begin_walk(u, own)
        u.request = 1
    elif asked:
        u.request = _walk(u, own)
    if u.starting_1:
        u.rows = u.active = 1
        u.rows_left = own.n_rows * own.count_0 * own.count_1
        u.unit = u.in_flight = u.packed = u.spare = u.beat = 0
    elif sent:
        u.active = 0
    if sent:
        u.waiting = 1
    elif writer_idle:
        u.waiting = 0
    u.done = done
    u.starting_1 = u.starting_0
    u.starting_0 = accept
    if accept:
        u.ready = 0
        u.item = item
    elif done:
        u.ready = 1


@njit(cache=True)
def _step_issuer(s, p, bursts, ready_at, offered, address, n_bytes, retire):
    """The address channel always accepts. ``ready_at``: of a burst that is issued now."""
    advance = not s.ended or not s.left
    if s.left:
        if s.issued - s.retired < p.outstanding:
            block_end = s.beat | (p.block_beats - 1)
            burst = bursts[s.issued % MAX_BURSTS]
            burst.last = s.last_beat <= block_end
            burst.n_beats = min(s.last_beat, block_end) - s.beat + 1
            burst.extra = s.start != 0 and s.end >= s.start
            burst.aligned = s.start == 0
            burst.spill = burst.last and s.end < s.start
            burst.ready_at = ready_at
            s.issued += 1
            s.left = not burst.last
            s.beat = block_end + 1
    else:
        s.left = s.ended
        s.beat, s.last_beat = s.ended_address >> p.log2_bytes, s.ended_last >> p.log2_bytes
        lanes = (1 << p.log2_bytes) - 1
        s.start, s.end = s.ended_address & lanes, s.ended_last & lanes
    if advance:
        s.ended = s.held
        s.ended_address, s.ended_last = s.held_address, s.held_address + s.held_bytes - 1
        s.held, s.held_address, s.held_bytes = offered, address, n_bytes
    s.retired += retire


@njit(cache=True)
def _step_reader(r, p, burst, n, offered, last, ready):
    """``offered``: the memory has a beat; ``last`` of its burst. Whether it was taken."""
    taken = offered and not (r.blocked or r.again)
    ends = last and burst.last
    emits = r.here and r.emit
    final, blocked = r.final, r.blocked
    if not blocked:
        if r.again:
            r.again, r.emit, r.final = 0, 1, 1
        else:
            r.here = offered
            r.again = offered and ends and burst.extra
            r.emit = not r.first or burst.aligned
            r.final = ends and not burst.extra
    if taken:
        r.first = ends
        r.next_at = n + p.interval
        r.n_beats = 0 if last else r.n_beats + 1
    if not r.valid or ready:
        r.valid = blocked or emits
        r.out_final = r.spare_final if blocked else final
        r.blocked = 0
    elif emits:
        r.blocked = 1
    if not blocked:
        r.spare_final = final
    return taken


@njit(cache=True)
def _step_writer(w, p, bursts, n, issued, offered, ready):
    """``offered``: a beat of data; ``ready``: the memory takes one. Whether it took one."""
    accept = offered and not w.blocked
    sent = w.valid and ready
    free = not w.valid or ready
    at_end = w.n_left == 0
    extra = at_end and w.spill
    goes = w.active and (w.here or extra)
    use = free and w.active and w.here and not extra
    next_plan = not w.active or (free and goes and at_end)
    if sent:
        w.next_at = n + p.interval
        if w.final:
            bursts[w.answered % MAX_BURSTS].ready_at = n + p.write_latency
            w.answered += 1
    if free:
        w.valid, w.final = goes, at_end
        w.n_left -= goes
    if next_plan:
        w.active = issued != w.planned
        if w.active:
            burst = bursts[w.planned % MAX_BURSTS]
            w.n_left, w.spill = burst.n_beats - 1, burst.spill
            w.planned += 1
    if not w.here or use:
        w.here = w.blocked or accept
        w.blocked = 0
    elif accept:
        w.blocked = 1
    return sent


@njit(cache=True)
def _is_idle(s):
    return not (s.held or s.ended or s.left) and s.issued == s.retired


@njit(cache=True)
def _next_event(n, compute, reading, reader, writing, writer, bursts):
    """The next cycle after ``n`` in which the engine or the memory acts by itself, or -1."""
    event = -1
    if compute.done_at > n:
        event = compute.done_at
    if reading.issued > reading.retired:
        at = max(bursts[0, reading.retired % MAX_BURSTS].ready_at, reader.next_at)
        if at > n and (event < 0 or at < event):
            event = at
    if writer.answered > writing.retired:
        at = bursts[1, writing.retired % MAX_BURSTS].ready_at
        if at > n and (event < 0 or at < event):
            event = at
    if writer.next_at > n and (event < 0 or writer.next_at < event):
        event = writer.next_at
    return event


@njit(cache=True)
def _run(
    parameters, instructions, counters, registers, n_control, units, lists, times, bursts, turns
):
    p, c = parameters[0], counters[0]
    fetch, compute = units[0][0], units[4][0]
    load_queue, compute_queue, store_queue = units[1][0], units[2][0], units[3][0]
    load, store, arbiter = units[5][0], units[6][0], units[7][0]
    reading, reader, writing, writer = units[8][0], units[9][0], units[10][0], units[11][0]
    reads, writes = bursts[0], bursts[1]
    all_counters = counters.view(np.int64)
    shadow, counted = np.zeros_like(registers), np.zeros_like(all_counters)
    control = registers[:n_control]
    control_before = np.zeros_like(control)
    n, quiet, still, waits = 1, 0, False, 0
    while n <= p.cycle_limit:
        looks = quiet >= _QUIET_CYCLES
        if looks:
            shadow[:] = registers
            counted[:] = all_counters

        # --- what the registers say in this cycle ------------------------------------------
        burst = reads[reading.retired % MAX_BURSTS]
        has_beat = reading.issued > reading.retired and n >= burst.ready_at and n >= reader.next_at
        beat_is_last = reader.n_beats + 1 == burst.n_beats
        bus_ready = n >= writer.next_at
        responds = (
            writer.answered > writing.retired and n >= writes[writing.retired % MAX_BURSTS].ready_at
        )
        engine_done, engine_ready = n == compute.done_at, n >= compute.done_at
        writer_idle = not writer.here and _is_idle(writing)
        issued_writes = writing.issued
        fetch_address, fetch_bytes = fetch.address, fetch.n_asked * _INSTRUCTION_BYTES

        room_in_arbiter = arbiter.written - arbiter.read < 2 * p.outstanding
        reader_ready = not reading.ended or not reading.left
        arbiter_free = (not arbiter.request or reader_ready) and room_in_arbiter
        fetch_asked = fetch.request and arbiter_free
        load_asked = load.request and arbiter_free and not fetch.request
        store_asked = store.request and (not writing.ended or not writing.left)

        to_load = turns[arbiter.read % MAX_TURNS] == 1
        kind = instructions[load.item].kind
        load_takes = load.active and kind != FILL and load.part == _n_parts(p, kind) - 1
        data_ready = load_takes or not to_load
        load_beat = reader.valid and to_load
        data_last = reader.out_final
        request_done = reader.valid and data_ready and data_last
        store_beat = store.beat and not writer.blocked

        load_taken = load_queue.valid and load.ready
        store_taken = store_queue.valid and store.ready
        compute_taken = (
            compute_queue.valid
            and compute.checked
            and (engine_ready if compute.is_run else compute.idle)
        )
        compute_done = engine_done or compute.synced
        load_done, store_done = load.done, store.done
        next_load = lists[LOAD, load_queue.n_taken]
        next_compute = lists[COMPUTE, compute_queue.n_taken]
        next_store = lists[STORE, store_queue.n_taken]
        oldest_load = lists[LOAD, load_queue.n_done]
        oldest_compute = lists[COMPUTE, compute_queue.n_done]
        oldest_store = lists[STORE, store_queue.n_done]
        compute_offered = compute_queue.valid
        if load_taken:
            times[next_load, 0] = n
        if compute_taken:
            times[next_compute, 0] = n
        if store_taken:
            times[next_store, 0] = n
        if load_done:
            times[oldest_load, 1] = n
        if compute_done:
            times[oldest_compute, 1] = n
        if store_done:
            times[oldest_store, 1] = n

        # --- counters, and the program's end -----------------------------------------------
        load_busy = load_queue.n_taken != load_queue.n_done
        compute_busy = compute_queue.n_taken != compute_queue.n_done
        store_busy = store_queue.n_taken != store_queue.n_done
        c.load_busy += load_busy
        c.compute_busy += compute_busy
        c.store_busy += store_busy
        c.load_waits_memory += load_takes and not load_beat
        c.store_waits_memory += store.beat and writer.blocked
        if fetch.ended and not (fetch.commit or load_busy or compute_busy or store_busy):
            left = load_queue.n_committed + compute_queue.n_committed + store_queue.n_committed
            left += load_queue.occupied + compute_queue.occupied + store_queue.occupied
            if fetch.state == _DECODE and not left:
                return FINISHED, n + 3

        # --- fetch and queues: often still for long -----------------------------------------
        arrived = reader.valid and not to_load
        taken = (load_taken, compute_taken, store_taken)
        done = (load_done, compute_done, store_done)
        event = fetch_asked or arrived or load_taken or compute_taken or store_taken
        event = event or load_done or compute_done or store_done
        still = still and not event
        if not still:
            looks_still = not event and n % _STILL_CYCLES == 0
            if looks_still:
                control_before[:] = control
            hands = (next_load, next_compute, next_store)
            oldest = (oldest_load, oldest_compute, oldest_store)
            waits = _step_control(
                units, p, instructions, hands, oldest, taken, done, fetch_asked, arrived
            )
            still = looks_still and (control_before == control).all()
        c.load_waits_compute += waits >> 1 & 1
        c.compute_waits_load += waits >> 2 & 1
        c.compute_waits_store += waits >> 3 & 1
        c.store_waits_compute += waits >> 4 & 1

        # --- units -------------------------------------------------------------------------
        if compute_taken and compute.is_run:
            compute.idle = 0
            compute.done_at = n + instructions[next_compute].n_cycles + 2
        elif engine_done:
            compute.idle = 1
        compute.synced = compute_taken and not compute.is_run
        compute.checked = compute_offered and not compute_taken
        compute.is_run = instructions[next_compute].kind == RUN
        load_address, store_address = load.address, store.address
        load_bytes = instructions[load.item].run_bytes
        store_bytes = instructions[store.item].run_bytes
        if load_taken or load_done or not load.ready:
            _step_load(
                load, p, instructions, load_taken, next_load, load_asked, load_beat, data_last
            )
        if store_taken or store_done or not store.ready:
            _step_store(
                store, p, instructions, store_taken, next_store,
                store_asked, not writer.blocked, writer_idle,
            )  # fmt: skip

        # --- movers ------------------------------------------------------------------------
        offered, address, n_bytes = arbiter.request, arbiter.address, arbiter.n_bytes
        if reader_ready:
            arbiter.request = 0
        if fetch_asked or load_asked:
            turns[arbiter.written % MAX_TURNS] = load_asked
            arbiter.written += 1
            arbiter.request = 1
            arbiter.address = fetch_address if fetch_asked else load_address
            arbiter.n_bytes = fetch_bytes if fetch_asked else load_bytes
        arbiter.read += request_done
        took = False
        if offered or reader.here or reader.valid or not _is_idle(reading):
            took = _step_reader(reader, p, burst, n, has_beat, beat_is_last, data_ready)
            retires = took and beat_is_last
            ready_at = n + 1 + p.read_latency
            _step_issuer(reading, p, reads, ready_at, offered, address, n_bytes, retires)
        gave = False
        if store_asked or store_beat or writer.valid or not writer_idle:
            gave = _step_writer(writer, p, writes, n, issued_writes, store_beat, bus_ready)
            _step_issuer(
                writing, p, writes, 0, store_asked, store_address, store_bytes, responds
            )  # fmt: skip
        c.read_beats += took
        c.write_beats += gave

        # --- on to the next cycle at which something can happen ------------------------------
        quiet = 0 if took or gave else quiet + 1
        if looks:
            quiet = 0
            if (shadow == registers).all():
                event = _next_event(n, compute, reading, reader, writing, writer, bursts)
                if event < 0:
                    return DEADLOCK, n
                all_counters += (event - n - 1) * (all_counters - counted)
                n = event - 1
        n += 1
    return LIMIT, n
