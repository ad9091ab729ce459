"""The transportation problem of a GS bundle, solved exactly, with prices that prove it.

A bundle of rows keeps ``need`` blocks in every row and ``groups`` blocks in every bank, and wants
the largest total. Only the blocks near the thresholds are open to doubt: those whose score less
their bank's expected price is above a band are kept, those below it are not, and the band's blocks
are listed per (row, bank) cell in falling order. Prices u (rows) and v (banks) come from a few
Newton steps on counts; the imbalance that is left goes along shortest augmenting paths (Dijkstra
with the prices as potentials). In the end every kept block scores at least ``u + v`` of its cell
and every other at most that, which proves the optimum (linear-programming duality) provided
``u + v`` lies in the band.

A bundle with fewer rows than the engine's has one more row of zeros without end, which takes what
the banks have free. All of this is ours; the transportation problem and successive shortest paths
are textbook (Ahuja, Magnanti, Orlin, "Network Flows", 1993). Compiled by numba.
"""

import numpy as np
from numba import njit

SOLVED, NARROW = 0, 1
_SWEEPS = 2
_INFINITY = np.inf


@njit(cache=True, nogil=True)
def list_band(shifted, low, high, rows, scores, n_banks, above, start, value, word, end):
    """List one bundle's band per cell, falling, and count the blocks above it.

    Parameters
    ----------
    shifted
        Shape (n_rows, n_words * n_banks): scores less the bank prices that the band was laid by.
    low, high
        Shape (n_rows,): the band, both ends included.
    rows, scores
        The bundle's rows of the matrix ``scores`` (n_matrix_rows, n_words * n_banks).
    above, start
        Filled: shape (n_rows, n_banks), blocks above the band; (n_rows * n_banks + 1,), where
        each cell's list starts in ``value`` and ``word``, from ``end`` on.

    Returns
    -------
    int
        Where the lists end.
    """
    n_rows, n_columns = shifted.shape
    n_words = n_columns // n_banks
    # A power of two: divisions would take most of the time.
    log2_banks = 0
    while 1 << log2_banks < n_banks:
        log2_banks += 1
    bank = n_banks - 1
    column = np.empty(n_columns + 1, dtype=np.int32)
    fill = np.empty(n_banks, dtype=np.int64)
    for i in range(n_rows):
        lo, hi = low[i], high[i]
        line = shifted[i]
        count = above[i]
        for j in range(n_banks):
            count[j] = 0
            fill[j] = 0
        for w in range(n_words):
            base = w * n_banks
            for j in range(n_banks):
                count[j] += np.int32(line[base + j] > hi)
        n = 0
        for c in range(n_columns):
            column[n] = c
            n += np.int64((line[c] >= lo) & (line[c] <= hi))
        for e in range(n):
            fill[column[e] & bank] += 1
        for j in range(n_banks):
            start[i * n_banks + j] = end
            size = fill[j]
            fill[j] = end
            end += size
        source = scores[rows[i]]
        for e in range(n):
            c = column[e]
            j = c & bank
            s = np.float64(source[c])
            first = start[i * n_banks + j]
            place = fill[j]
            fill[j] += 1
            # Insertion keeps equal scores in the order of their words.
            while place > first and value[place - 1] < s:
                value[place] = value[place - 1]
                word[place] = word[place - 1]
                place -= 1
            value[place] = s
            word[place] = c >> log2_banks
    start[n_rows * n_banks] = end
    return end


@njit(cache=True, nogil=True)
def _cut(start, value, u, v, n_rows, x):
    """Keep of each cell's list what exceeds the cell's price."""
    n_banks = v.size
    for i in range(n_rows):
        for j in range(n_banks):
            first, last = start[i * n_banks + j], start[i * n_banks + j + 1]
            price = u[i] + v[j]
            e = first + x[i, j]
            while e < last and value[e] > price:
                e += 1
            while e > first and value[e - 1] <= price:
                e -= 1
            x[i, j] = e - first


@njit(cache=True, nogil=True)
def _fit_row(start, value, u, v, x, i, missing):
    """Let a row take ``missing`` more blocks at its best (or drop as many), and set its price.

    Returns
    -------
    float
        Score gained; -inf where its lists do not hold that many.
    """
    n_banks = v.size
    gain = 0.0
    while True:
        least, most = _INFINITY, -_INFINITY
        leaver, comer = -1, -1
        for j in range(n_banks):
            first, last = start[i * n_banks + j], start[i * n_banks + j + 1]
            e = first + x[i, j]
            before, after = value[max(e - 1, 0)] - v[j], value[e] - v[j]
            before = before if e > first else _INFINITY
            after = after if e < last else -_INFINITY
            leaver = j if before < least else leaver
            least = min(least, before)
            comer = j if after > most else comer
            most = max(most, after)
        if missing < 0 and leaver >= 0:
            x[i, leaver] -= 1
            missing += 1
            gain -= least + v[leaver]
        elif missing > 0 and comer >= 0:
            x[i, comer] += 1
            missing -= 1
            gain += most + v[comer]
        else:
            break
    if leaver >= 0 and comer >= 0:
        u[i] = 0.5 * (least + most)
    elif leaver >= 0:
        u[i] = least
    elif comer >= 0:
        u[i] = most
    return gain if missing == 0 else -_INFINITY


@njit(cache=True, nogil=True)
def first_solution(above, start, value, low, high, need, groups, u, v, n_rows, x, line, steep):
    """Prices near the best ones, and counts ``x`` that keep exactly ``need`` in every real row.

    A few Newton steps on rows' and banks' counts (the lists' density is their slope), then single
    blocks until every row's count is right; its price goes between what it keeps and what not.

    Parameters
    ----------
    line
        Shape (n_rows,): blocks of each row above the band.
    steep
        Shape (n_rows,): room for what a row's list spans per score.

    Returns
    -------
    int
        ``NARROW`` where the band holds too few blocks for that.
    """
    n_banks = v.size
    partial = n_rows < x.shape[0]
    for i in range(n_rows):
        steep[i] = 0.0
        n_listed = start[(i + 1) * n_banks] - start[i * n_banks]
        wanted = need - line[i]
        if wanted < 0 or wanted > n_listed:
            return NARROW
        top, bottom = -_INFINITY, _INFINITY
        for j in range(n_banks):
            first, last = start[i * n_banks + j], start[i * n_banks + j + 1]
            if last > first:
                top = max(top, value[first] - v[j])
                bottom = min(bottom, value[last - 1] - v[j])
        if n_listed == 0:
            u[i] = 0.5 * (np.float64(low[i]) + np.float64(high[i]))
            continue
        u[i] = top - (top - bottom) * wanted / n_listed
        steep[i] = 1.0 / (top - bottom) if top > bottom else 0.0
    _cut(start, value, u, v, n_rows, x)
    for _ in range(0 if partial else _SWEEPS):
        for j in range(n_banks):
            slope = 0.0
            over = -groups
            for i in range(n_rows):
                over += above[i, j] + x[i, j]
                n_listed = start[i * n_banks + j + 1] - start[i * n_banks + j]
                slope += n_listed * steep[i]
            if slope > 0.0:
                v[j] += over / slope
        _cut(start, value, u, v, n_rows, x)
        for i in range(n_rows):
            n_listed = start[(i + 1) * n_banks] - start[i * n_banks]
            over = line[i] - need
            for j in range(n_banks):
                over += x[i, j]
            if steep[i] > 0.0:
                u[i] += over / (n_listed * steep[i])
        _cut(start, value, u, v, n_rows, x)
    for i in range(n_rows):
        over = line[i] - need
        for j in range(n_banks):
            over += x[i, j]
        if _fit_row(start, value, u, v, x, i, -over) == -_INFINITY:
            return NARROW
    if partial:
        u[n_rows] = 0.0
        for j in range(n_banks):
            taken = 0
            for i in range(n_rows):
                taken += above[i, j] + x[i, j]
            x[n_rows, j] = max(0, groups - taken)
    return SOLVED


@njit(cache=True, nogil=True)
def _set_ends(start, value, x, i, j, n_rows, lowest, highest):
    """The cell's least kept and best free block within the band."""
    if i == n_rows:
        low = 0.0 if x[i, j] > 0 else _INFINITY
        high = 0.0
    else:
        n_banks = x.shape[1]
        first, last = start[i * n_banks + j], start[i * n_banks + j + 1]
        e = first + x[i, j]
        # Loads come first, so that the choice needs no branch; ``value`` has one entry to spare.
        before, after = value[max(e - 1, 0)], value[e]
        low = before if e > first else _INFINITY
        high = after if e < last else -_INFINITY
    lowest[i, j] = low
    highest[i, j] = high


@njit(cache=True, nogil=True)
def _augment(
    source, adding, start, value, x, u, v, over_row, over_bank, n_rows, lowest, highest,
    distance, came, bound, key,
):  # fmt: skip
    """The shortest path from a bank that has too few (or too many) blocks to where it ends.

    Returns
    -------
    float
        Score gained; -inf where the band has no path.
    """
    n_lines, n_banks = x.shape
    # Choices instead of branches: which node is nearest is beyond any branch predictor.
    # A closed node's ``bound`` is -inf, so that no path to it is shorter, and its ``key`` inf, so
    # that it is not found again.
    n_nodes = n_banks + n_lines
    sign = -1 if adding else 1
    for node in range(n_nodes):
        distance[node] = _INFINITY
        bound[node] = _INFINITY
        key[node] = _INFINITY
    key[source] = 0.0
    came[source] = -1
    while True:
        node, reach = -1, _INFINITY
        for other in range(n_nodes):
            node = other if key[other] < reach else node
            reach = min(reach, key[other])
        if node < 0:
            return -_INFINITY
        if node < n_banks:
            if sign * over_bank[node] < 0:
                break
            distance[node] = reach
            bound[node] = -_INFINITY
            key[node] = _INFINITY
            offset = reach + v[node] if adding else reach - v[node]
            for i in range(n_lines):
                if adding:
                    total = offset + u[i] - highest[i, node]
                else:
                    total = offset - u[i] + lowest[i, node]
                total = max(total, reach)
                other = n_banks + i
                shorter = total < bound[other]
                bound[other] = total if shorter else bound[other]
                key[other] = total if shorter else key[other]
                came[other] = node if shorter else came[other]
        else:
            i = node - n_banks
            if sign * over_row[i] > 0:
                break
            distance[node] = reach
            bound[node] = -_INFINITY
            key[node] = _INFINITY
            offset = reach - u[i] if adding else reach + u[i]
            for j in range(n_banks):
                if adding:
                    total = offset - v[j] + lowest[i, j]
                else:
                    total = offset + v[j] - highest[i, j]
                total = max(total, reach)
                shorter = total < bound[j]
                bound[j] = total if shorter else bound[j]
                key[j] = total if shorter else key[j]
                came[j] = node if shorter else came[j]
    # Prices of the nodes passed follow the path, so that no kept block gets below its price.
    for j in range(n_banks):
        if distance[j] < _INFINITY:
            v[j] += sign * (reach - distance[j])
    for i in range(n_lines):
        if distance[n_banks + i] < _INFINITY:
            u[i] -= sign * (reach - distance[n_banks + i])
    gain = 0.0
    if node < n_banks:
        over_bank[node] += sign
    else:
        over_row[node - n_banks] -= sign
    while came[node] >= 0:
        before = came[node]
        if node < n_banks:
            i, j, add = before - n_banks, node, not adding
        else:
            i, j, add = node - n_banks, before, adding
        if add:
            gain += highest[i, j]
            x[i, j] += 1
        else:
            gain -= lowest[i, j]
            x[i, j] -= 1
        _set_ends(start, value, x, i, j, n_rows, lowest, highest)
        node = before
    over_bank[source] -= sign
    return gain


@njit(cache=True, nogil=True)
def balance(
    above, start, value, need, groups, u, v, n_rows, x, lowest, highest, over_row, over_bank,
    distance, came, bound, key,
):  # fmt: skip
    """Make every row keep ``need`` blocks and every bank ``groups``, by best paths.

    ``u``, ``v`` and ``x`` must satisfy: kept blocks score at least their price, others at most.

    Returns
    -------
    status, gain
        Change of the total score.
    """
    n_lines, n_banks = x.shape
    for i in range(n_lines):
        over_row[i] = 0
    if n_rows < n_lines:
        n_lines = n_rows + 1
    for j in range(n_banks):
        over_bank[j] = -groups
    for i in range(n_lines):
        over_row[i] = -need
        if i == n_rows:
            over_row[i] = -need * (x.shape[0] - n_rows)
        for j in range(n_banks):
            taken = x[i, j]
            if i < n_rows:
                taken += above[i, j]
            over_row[i] += taken
            over_bank[j] += taken
            _set_ends(start, value, x, i, j, n_rows, lowest, highest)
    gain = 0.0
    part = x[:n_lines]
    for adding in (False, True):
        sign = -1 if adding else 1
        for j in range(n_banks):
            while sign * over_bank[j] > 0:
                won = _augment(
                    j, adding, start, value, part, u, v, over_row, over_bank, n_rows,
                    lowest, highest, distance, came, bound, key,
                )  # fmt: skip
                if won == -_INFINITY:
                    return NARROW, 0.0
                gain += won
    return SOLVED, gain


@njit(cache=True, nogil=True)
def in_band(u, v, n_rows, low, high, laid, margin):
    """Whether every cell's price lies in the band, so that blocks outside it are decided."""
    for i in range(n_rows):
        for j in range(v.size):
            price = u[i] + v[j] - laid[j]
            if price < low[i] + margin * abs(low[i]) or price > high[i] - margin * abs(high[i]):
                return False
    return True


@njit(cache=True, nogil=True)
def _rooms(n_lines, n_banks):
    n_nodes = n_lines + n_banks
    return (
        np.empty((n_lines, n_banks)),
        np.empty((n_lines, n_banks)),
        np.empty(n_lines, dtype=np.int64),
        np.empty(n_banks, dtype=np.int64),
        np.empty(n_nodes),
        np.empty(n_nodes, dtype=np.int64),
        np.empty(n_nodes),
        np.empty(n_nodes),
    )


@njit(cache=True, nogil=True)
def solve_batch(
    shifted, low, high, rows, scores, laid, n_rows, per_row, groups, margin,
    above, start, value, word, u, v, x, status,
):  # fmt: skip
    """List and solve bundles of one matrix that have the same number of groups.

    Parameters
    ----------
    shifted
        Shape (n_bundles, n_rows, n_columns); ``low``, ``high`` (n_bundles, n_rows); ``rows``
        (n_bundles, n_rows).
    laid
        Shape (n_banks,): the bank prices subtracted in ``shifted``.
    above, start, u, v, x, status
        Filled, one line per bundle; lists go to ``value`` and ``word`` one after the other.

    Returns
    -------
    int
        Entries of ``value`` used.
    """
    n_bundles = shifted.shape[0]
    n_banks = laid.size
    n_lines = x.shape[1]
    lowest, highest, over_row, over_bank, distance, came, bound, key = _rooms(n_lines, n_banks)
    line, steep = np.empty(n_lines, dtype=np.int64), np.empty(n_lines)
    need = groups * per_row
    end = 0
    for b in range(n_bundles):
        v[b, :] = laid
        u[b, :] = 0.0
        x[b, :, :] = 0
        end = list_band(
            shifted[b], low[b], high[b], rows[b], scores, n_banks,
            above[b], start[b], value, word, end,
        )  # fmt: skip
        for i in range(n_rows):
            line[i] = 0
            for j in range(n_banks):
                line[i] += above[b, i, j]
        status[b] = first_solution(
            above[b], start[b], value, low[b], high[b], need, groups, u[b], v[b], n_rows, x[b],
            line, steep,
        )  # fmt: skip
        if status[b] == SOLVED:
            status[b], _ = balance(
                above[b], start[b], value, need, groups, u[b], v[b], n_rows, x[b],
                lowest, highest, over_row, over_bank, distance, came, bound, key,
            )  # fmt: skip
        if status[b] == SOLVED and not in_band(u[b], v[b], n_rows, low[b], high[b], laid, margin):
            status[b] = NARROW
    return end


@njit(cache=True, nogil=True)
def _step(
    b, change, keep, above, start, value, low, high, laid, margin, n_real, per_row, groups,
    u, v, x, rooms,
):  # fmt: skip
    """Score of one group more (``change`` = 1) or less (-1) in a bundle; with ``keep``, do it.

    Returns
    -------
    status, gain
    """
    lowest, highest, over_row, over_bank, distance, came, bound, key = rooms
    n_rows = n_real[b]
    wanted = groups[b] + change
    new_u = u[b].copy()
    new_v = v[b].copy()
    new_x = x[b].copy()
    fitted = 0.0
    for i in range(n_rows):
        won = _fit_row(start[b], value, new_u, new_v, new_x, i, change * per_row)
        if won == -_INFINITY:
            return NARROW, 0.0
        fitted += won
    status, gain = balance(
        above[b], start[b], value, wanted * per_row, wanted, new_u, new_v, n_rows, new_x,
        lowest, highest, over_row, over_bank, distance, came, bound, key,
    )  # fmt: skip
    if status == SOLVED and not in_band(new_u, new_v, n_rows, low[b], high[b], laid[b], margin):
        status = NARROW
    if status == SOLVED and keep:
        u[b, :] = new_u
        v[b, :] = new_v
        x[b, :, :] = new_x
        groups[b] = wanted
    return status, fitted + gain


@njit(cache=True, nogil=True)
def _group_price(b, u, v, n_real, per_row, n_lines):
    """What the prices say a block of one more group is worth: between both marginals."""
    total = 0.0
    for i in range(n_real[b]):
        total += per_row * u[b, i]
    if n_real[b] < n_lines:
        total += per_row * (n_lines - n_real[b]) * u[b, n_real[b]]
    for j in range(v.shape[1]):
        total += v[b, j]
    return total / (per_row * n_real[b])


@njit(cache=True, nogil=True)
def exchange_groups(
    budget, tolerance, above, start, value, low, high, laid, margin, n_real, per_row, groups,
    least, most, u, v, x, gain_up, exact_up, loss_down, exact_down,
):  # fmt: skip
    """Move groups between bundles until no other split of as many blocks is better.

    The best score of a bundle is concave in its groups: the split is optimal iff no bundle gains
    more per block from one group than another loses by one. Prices bound both, and the exact
    figures, a few paths each, are found only where the bounds leave a doubt.

    Parameters
    ----------
    budget
        Blocks to keep at most; missed by less than one group where the bundles allow.
    tolerance
        A gain per block below it is rounding noise.
    gain_up, exact_up, loss_down, exact_down
        Per bundle, per block of a group: bounds of what one more group gains and of what one less
        loses, and whether they are exact. Kept between calls; NaN: not known.

    Returns
    -------
    int, float
        A bundle whose band has become too narrow, or -1; and the price of a block at which the
        split is optimal.
    """
    n_bundles = groups.size
    n_lines, n_banks = x.shape[1], x.shape[2]
    rooms = _rooms(n_lines, n_banks)
    kept = 0
    for b in range(n_bundles):
        kept += groups[b] * per_row * n_real[b]
        if np.isnan(gain_up[b]):
            price = _group_price(b, u, v, n_real, per_row, n_lines)
            gain_up[b] = price
            exact_up[b] = False
            loss_down[b] = price
            exact_down[b] = False
        if groups[b] >= most[b]:
            gain_up[b] = -_INFINITY
            exact_up[b] = True
        if groups[b] <= least[b]:
            loss_down[b] = _INFINITY
            exact_down[b] = True
    while True:
        a, c = 0, 0
        for b in range(1, n_bundles):
            if gain_up[b] > gain_up[a]:
                a = b
            if loss_down[b] < loss_down[c]:
                c = b
        best, worst = gain_up[a], loss_down[c]
        size = per_row * n_real[a]
        may_add = kept + size <= budget and best > -_INFINITY
        must_drop = kept > budget and worst < _INFINITY
        # By concavity a bundle's own marginals are in order; if not, that is rounding.
        alone = a == c and exact_up[a] and exact_down[c]
        ordered = best <= worst + tolerance or alone
        if ordered and not may_add and not must_drop:
            if worst == _INFINITY:
                return -1, best
            return -1, worst if best == -_INFINITY else 0.5 * (best + worst)
        refine_up = not exact_up[a] and not (ordered and must_drop)
        refine_down = not exact_down[c] and not (ordered and may_add)
        if refine_up:
            status, gain = _step(
                a, 1, False, above, start, value, low, high, laid, margin, n_real, per_row,
                groups, u, v, x, rooms,
            )  # fmt: skip
            if status == NARROW:
                return a, 0.0
            gain_up[a] = min(gain_up[a], gain / (per_row * n_real[a]))
            exact_up[a] = True
        if refine_down and not (refine_up and a == c):
            status, gain = _step(
                c, -1, False, above, start, value, low, high, laid, margin, n_real, per_row,
                groups, u, v, x, rooms,
            )  # fmt: skip
            if status == NARROW:
                return c, 0.0
            loss_down[c] = max(loss_down[c], -gain / (per_row * n_real[c]))
            exact_down[c] = True
        if refine_up or refine_down:
            continue
        for change in (1, -1):
            wanted = (may_add or not ordered) if change > 0 else (must_drop or not ordered)
            b = a if change > 0 else c
            # A swap keeps the budget; where only one side moves, the next rounds put it right.
            if not wanted or (change > 0 and must_drop) or (change < 0 and may_add):
                continue
            status, gain = _step(
                b, change, True, above, start, value, low, high, laid, margin, n_real, per_row,
                groups, u, v, x, rooms,
            )  # fmt: skip
            if status == NARROW:
                return b, 0.0
            size = per_row * n_real[b]
            kept += change * size
            price = _group_price(b, u, v, n_real, per_row, n_lines)
            if change > 0:
                loss_down[b] = gain / size
                exact_down[b] = True
                gain_up[b] = min(price, gain / size)
                exact_up[b] = False
            else:
                gain_up[b] = -gain / size
                exact_up[b] = True
                loss_down[b] = max(price, -gain / size)
                exact_down[b] = False
            if groups[b] >= most[b]:
                gain_up[b] = -_INFINITY
                exact_up[b] = True
            if groups[b] <= least[b]:
                loss_down[b] = _INFINITY
                exact_down[b] = True


@njit(cache=True, nogil=True)
def write_mask(scores, rows, n_real, laid, high, start, word, x, mask):
    """Set ``mask`` (the shape of ``scores``): blocks above the bands, and those taken from them."""
    n_bundles, _, n_banks = x.shape
    n_words = scores.shape[1] // n_banks
    for b in range(n_bundles):
        for i in range(n_real[b]):
            source = scores[rows[b, i]]
            line = mask[rows[b, i]]
            hi = high[b, i]
            for w in range(n_words):
                base = w * n_banks
                for j in range(n_banks):
                    line[base + j] = (source[base + j] - laid[b, j]) > hi
            for j in range(n_banks):
                first = start[b, i * n_banks + j]
                for e in range(first, first + x[b, i, j]):
                    line[word[e] * n_banks + j] = True


@njit(cache=True, nogil=True)
def _zeros_short(mask, rows, b, n_rows, u, v, per_row, n_lines, count):
    """What a partial bundle's row of zeros may gain at its prices, counted from the mask."""
    n_banks = v.shape[1]
    total = 0
    for j in range(n_banks):
        count[j] = 0
    for i in range(n_rows):
        line = mask[rows[b, i]]
        for w in range(line.size // n_banks):
            for j in range(n_banks):
                count[j] += np.int64(line[w * n_banks + j])
    for j in range(n_banks):
        total += count[j]
    groups = total // (per_row * n_rows)
    room = groups * per_row * (n_lines - n_rows)
    short = 0.0
    for j in range(n_banks):
        price = u[b, n_rows] + v[b, j]
        short += (groups - count[j]) * max(0.0, price) + room * max(0.0, -price)
    return short


@njit(cache=True, nogil=True)
def certify(scores, mask, rows, n_real, u, v, per_row, n_lines):
    """Score kept, and by how much the prices say that it may fall short, over all bundles.

    For a balanced mask the dual bound is the sum of both (linear-programming duality): blocks that
    are kept below their price ``u + v``, or left out above it, are all that can be gained. In a
    bundle of fewer than ``n_lines`` rows, the zeros that fill its banks count as blocks kept.

    Parameters
    ----------
    scores, mask
        Shape (n_matrix_rows, n_words * n_banks).
    rows, n_real
        Shape (n_bundles, n_lines) and (n_bundles,): the rows of each bundle.
    u, v
        Shape (n_bundles, n_lines) and (n_bundles, n_banks).

    Returns
    -------
    kept, short, magnitude
        The last is the sum of the kept scores' magnitudes.
    """
    kept = 0.0
    short = 0.0
    magnitude = 0.0
    count = np.zeros(v.shape[1], dtype=np.int64)
    n_bundles, n_banks = v.shape
    n_words = scores.shape[1] // n_banks
    price = np.empty(n_banks)
    for b in range(n_bundles):
        partial = n_real[b] < n_lines
        if partial:
            short += _zeros_short(mask, rows, b, n_real[b], u, v, per_row, n_lines, count)
        for i in range(n_real[b]):
            source = scores[rows[b, i]]
            line = mask[rows[b, i]]
            for j in range(n_banks):
                price[j] = u[b, i] + v[b, j]
            for w in range(n_words):
                base = w * n_banks
                for j in range(n_banks):
                    s = np.float64(source[base + j])
                    over = s - price[j]
                    if line[base + j]:
                        kept += s
                        magnitude += abs(s)
                        short += max(0.0, -over)
                    else:
                        short += max(0.0, over)
    return kept, short, magnitude


@njit(cache=True, nogil=True)
def write_ranked(scores, last, depth, mask):
    """Set ``mask``: the ``depth[row]`` largest blocks of every bank; ties by word.

    Parameters
    ----------
    last
        Shape (n_rows, n_banks): the least score kept in each bank.
    """
    n_rows, n_banks = last.shape
    n_words = scores.shape[1] // n_banks
    count = np.empty(n_banks, dtype=np.int64)
    for i in range(n_rows):
        if depth[i] == 0:
            continue
        line, source, edge = mask[i], scores[i], last[i]
        for j in range(n_banks):
            count[j] = 0
        for w in range(n_words):
            base = w * n_banks
            for j in range(n_banks):
                line[base + j] = source[base + j] >= edge[j]
                count[j] += np.int64(line[base + j])
        for j in range(n_banks):
            w = n_words - 1
            while count[j] > depth[i]:
                # Of equal scores the later words go.
                if line[w * n_banks + j] and source[w * n_banks + j] == edge[j]:
                    line[w * n_banks + j] = False
                    count[j] -= 1
                w -= 1
