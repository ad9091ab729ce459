"""The transportation problems of all GS bundles of a layer at once, on torch tensors.

Once every (row, bank) cell is sorted, the number of blocks above any price is a binary search, and
everything here works on one number per cell:

1. prices of rows and banks, and how many groups each bundle deserves, by Newton steps on all
   bundles at once (the dual of the transportation problem under one price for the whole budget);
2. for the rounded groups, rows keep exactly their share of the highest priced-down blocks;
3. what banks then have too many or too few moves along best paths, all bundles in step (successive
   shortest paths, Ahuja, Magnanti, Orlin, "Network Flows", 1993); the prices stay exact;
4. groups go where their blocks are worth most, as long as an exchange gains.
"""

import torch
from torch import Tensor
from torch.nn import functional

from gshw.config import EngineConfig

_PRICE_STEPS = 8
_EXCHANGES = 64
_MOVES_AT_ONCE = 1 << 21
"""Row moves between two banks that are compared at a time, to bound memory."""


class Bundles:
    """All bundles of a layer: their sorted cells, prices and counts.

    Rows that the last bundle lacks have cells of -inf. The first of them instead stands for
    blocks that score nothing, without end: it keeps what all the lacking rows would, and so takes
    what the banks have free.
    """

    def __init__(self, config: EngineConfig, cells: Tensor, depth: Tensor) -> None:
        n_rows, n_banks, n_words = cells.shape
        n_lines, self.per_row = config.rows, config.lanes_per_row
        n_bundles = -(-n_rows // n_lines)
        self.n_lacking = n_bundles * n_lines - n_rows
        padded = functional.pad(cells, (0, 0, 0, 0, 0, self.n_lacking), value=-torch.inf)
        self.cells = padded.reshape(n_bundles, n_lines, n_banks, n_words)
        line = torch.arange(n_bundles * n_lines, device=cells.device)
        self.real = (line < n_rows).reshape(n_bundles, n_lines)
        self.lines = line[:n_lines]
        self.banks = torch.arange(n_banks, device=cells.device)
        self.lowest = float(cells[:, self.banks, n_words - depth].min())
        self.highest = float(cells[:, :, -1].max())
        self.cost = self.real.sum(dim=1) * self.per_row
        """Blocks of one group."""
        self.most = torch.full_like(self.cost, n_lines * int(depth.min()))
        if self.n_lacking:
            self.most[-1] = self._most_partial(depth)
        self.groups = torch.zeros_like(self.cost)
        self.u = torch.zeros(n_bundles, n_lines, dtype=torch.float64, device=cells.device)
        self.v = torch.zeros(n_bundles, n_banks, dtype=torch.float64, device=cells.device)
        self.x = torch.zeros(n_bundles, n_lines, n_banks, dtype=torch.int64, device=cells.device)

    def _most_partial(self, depth: Tensor) -> int:
        """Groups that the last rows can feed: banks give each row at most what they have."""
        n_rows = int(self.real[-1].sum())
        groups = torch.arange(int(depth.sum()) // self.per_row + 1, device=depth.device)
        reach = torch.minimum(n_rows * depth[None, :], groups[:, None]).sum(dim=1)
        return int((reach >= n_rows * self.per_row * groups).sum()) - 1

    def _above(self, u: Tensor, v: Tensor) -> Tensor:
        """Blocks of every cell that score more than its price ``u + v``."""
        price = (u[:, :, None] + v[:, None, :]).to(self.cells.dtype)
        below = torch.searchsorted(self.cells, price[..., None], right=True)
        return self.cells.shape[3] - below.squeeze(3)

    def price(self, budget: int, threshold: float) -> Tensor:
        """Set prices near the optimum under one price of a block; the groups they ask for.

        Newton steps in turn on row prices, bank prices and groups per bundle, with the densities
        of scores around the prices as derivatives.

        Parameters
        ----------
        budget
            Blocks to keep at most.
        threshold
            Score of the last block that unstructured pruning would keep.

        Returns
        -------
        Tensor
            Shape (n_bundles,), int64: groups that cost at most ``budget`` blocks.
        """
        excess = (self.cells - threshold).clamp_min_(0.0).sum(dtype=torch.float64)
        # Half the mean excess of what is kept: the scale on which densities change.
        width = 0.5 * float(excess) / max(1, budget)
        if width == 0.0:
            width = max(1.0, abs(threshold)) * 1e-3
        least = 0.5 / width
        self.u += threshold
        above = self._above(self.u, self.v)
        wanted = above.sum(dim=(1, 2)) / self.cost
        for _ in range(_PRICE_STEPS):
            density = self._above(self.u - width, self.v) - self._above(self.u + width, self.v)
            density = density.double() / (2.0 * width)
            over = above.sum(dim=2) - wanted[:, None] * self.per_row
            step = over / density.sum(dim=2).clamp_min(least)
            self.u += step.clamp(-2.0 * width, 2.0 * width)
            over = self._above(self.u, self.v).sum(dim=1) - wanted[:, None]
            step = over / density.sum(dim=1).clamp_min(least)
            self.v += step.clamp(-2.0 * width, 2.0 * width)
            if self.n_lacking:
                self.v[-1].clamp_min_(0.0)
            # What a block of one more group is worth should be the same everywhere.
            worth = self._group_price(self.u) / self.cost
            weight = density.sum(dim=(1, 2)).clamp_min(least)
            common = (weight * worth).sum() / weight.sum()
            wanted = (wanted + weight * (worth - common) / self.cost).clamp_min(0.0)
            wanted = wanted * (budget / (wanted * self.cost).sum().clamp_min(1.0))
            wanted = torch.minimum(wanted, self.most)
            above = self._above(self.u, self.v)
        return self._round(wanted, budget)

    def _group_price(self, u: Tensor) -> Tensor:
        """Shape (n_bundles,): what the prices say that one more group is worth."""
        return self.per_row * torch.where(self.real, u, 0.0).sum(dim=1) + self.v.sum(dim=1)

    def _round(self, wanted: Tensor, budget: int) -> Tensor:
        """Whole groups near ``wanted`` that cost at most the budget, less by under a group."""
        groups = wanted.floor().to(torch.int64)
        order = torch.argsort(wanted - groups, descending=True, stable=True)
        while True:
            left = budget - int((groups * self.cost).sum())
            open_ = order[(groups < self.most)[order]]
            chosen = open_[self.cost[open_].cumsum(dim=0) <= left]
            if not chosen.numel():
                return groups
            groups[chosen] += 1

    def solve(self, groups: Tensor, budget: int) -> None:
        """Best counts for these groups, then exchange groups until no exchange gains."""
        self.groups = groups
        bundle = torch.arange(len(groups), device=groups.device)
        self.x, self.v, _ = self._balance(bundle, self._fill_rows(), self.v, groups)
        self._exchange(budget)

    def _fill_rows(self) -> Tensor:
        """Counts by which every row keeps exactly its share: what exceeds bank prices by most."""
        need = torch.where(self.real, self.groups[:, None] * self.per_row, 0)
        # Away from the ends by more than rounding, so that all or nothing lies above.
        margin = 1e-3 * (self.highest - self.lowest) + 1e-6 * max(-self.lowest, self.highest)
        margin = margin if margin > 0.0 else 1.0
        low = self.lowest - margin - self.v.amax(dim=1)[:, None].expand_as(self.u)
        high = self.highest + margin - self.v.amin(dim=1)[:, None].expand_as(self.u)
        for _ in range(32 if self.cells.dtype == torch.float32 else 60):
            middle = 0.5 * (low + high)
            enough = self._above(middle, self.v).sum(dim=2) >= need
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        surely, maybe = self._above(high, self.v), self._above(low, self.v)
        # What lies between is tied. Spread it over the banks, or it would have to be moved later.
        tied = maybe - surely
        need = need - surely.sum(dim=2)
        share = need / tied.sum(dim=2).clamp_min(1)
        part = (tied * share[..., None]).floor().to(torch.int64)
        room, need = tied - part, need - part.sum(dim=2)
        turn = (self.lines[:, None] + self.banks[None, :]) % len(self.banks)
        turn = turn.expand_as(room)
        room = room.gather(2, turn)
        rest = (need[..., None] - (room.cumsum(dim=2) - room)).clamp_min(0).minimum(room)
        x = surely + part.scatter_add(2, turn, rest)
        if self.n_lacking:
            self._fill_lacking(x[-1], self.v[-1], self.groups[-1])
        return x

    def _fill_lacking(self, x: Tensor, v: Tensor, groups: Tensor) -> None:
        """Blocks that score nothing go where the bank's price is lowest, and room is left.

        Parameters
        ----------
        x
            Shape (n_lines, n_banks), of the last bundle: its lacking line is written.
        """
        line = len(x) - self.n_lacking
        cheap = v == v.min()
        room = (groups - x[:line].sum(dim=0)).clamp_min(0) * cheap
        need = groups * self.n_lacking * self.per_row
        taken = (need - (room.cumsum(dim=0) - room)).clamp_min(0).minimum(room)
        rest, n_cheap = need - taken.sum(), cheap.sum()
        extra = torch.div(rest, n_cheap, rounding_mode="floor")
        extra = extra + (cheap.cumsum(dim=0) - 1 < rest % n_cheap)
        x[line] = taken + extra * cheap

    def _edges(self, bundle: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Best block not kept (-inf: none), and least block kept (inf: none), of every cell."""
        n_lines, n_banks, n_words = self.cells.shape[1:]
        cell = (bundle[:, None, None] * n_lines + self.lines[:, None]) * n_banks + self.banks
        index = cell * n_words + (n_words - 1) - x
        flat = self.cells.reshape(-1)
        free = torch.where(x < n_words, flat[index.clamp_min(0)].double(), -torch.inf)
        kept = torch.where(x > 0, flat[(index + 1).clamp_max(flat.numel() - 1)].double(), torch.inf)
        if self.n_lacking:
            last, line = bundle == len(self.cells) - 1, n_lines - self.n_lacking
            free[last, line] = 0.0
            kept[last, line] = torch.where(x[last, line] > 0, 0.0, torch.inf).double()
        return free, kept

    def _balance(
        self, bundle: Tensor, x: Tensor, v: Tensor, groups: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move blocks from banks with too many along best paths, a path per bundle at a time.

        Parameters
        ----------
        bundle
            Shape (n,): which bundles; the same one may come twice.
        x, v, groups
            Shapes (n, n_lines, n_banks), (n, n_banks), (n,): rows that keep their shares and are
            optimal for the bank prices ``v``.

        Returns
        -------
        tuple of Tensor
            ``x`` and ``v`` of optimal counts, and the change of each score.
        """
        n_banks = x.shape[2]
        x, v, gain = x.clone(), v.clone(), torch.zeros_like(v[:, 0])
        at_once = max(1, _MOVES_AT_ONCE // (x.shape[1] * n_banks * n_banks))
        for first in range(0, len(bundle), at_once):
            at = torch.arange(first, min(first + at_once, len(bundle)), device=x.device)
            while True:
                over = x[at].sum(dim=1) - groups[at, None]
                unequal = (over > 0).any(dim=1)
                at, over = at[unequal], over[unequal]
                if not at.numel():
                    break
                free, kept = self._edges(bundle[at], x[at])
                price = v[at][:, None, :]
                free, kept = free - price, kept - price
                # moves[b, j, l]: best change of the priced score by one block leaving j for l.
                # Prices make it at most 0, but for rounding.
                moves = (free[:, :, None, :] - kept[:, :, :, None]).amax(dim=1).clamp_max_(0.0)
                reach, came = _best_paths(moves, over > 0)
                reached, end = torch.where(over < 0, reach, -torch.inf).max(dim=1)
                source = _follow(x, at, came, end, free, kept)
                gain[at] += reached + v[at, end] - v[at, source]
                v[at] += torch.maximum(reach, reached[:, None])
        return x, v, gain

    def _step(self, bundle: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best counts with one group more or less, prices, and the change of the score."""
        x, v = self.x[bundle], self.v[bundle]
        each = torch.arange(len(bundle), device=x.device)[:, None]
        gain = torch.zeros_like(v[:, 0])
        more = (change > 0)[:, None]
        real = self.real[bundle]
        for _ in range(self.per_row):
            free, kept = self._edges(bundle, x)
            price = v[:, None, :]
            best, add = (free - price).max(dim=2)
            worst, drop = (kept - price).min(dim=2)
            bank = torch.where(more, add, drop)
            value = torch.where(more, best, -worst) + torch.where(more, 1, -1) * v.gather(1, bank)
            gain += torch.where(real, value, 0.0).sum(dim=1)
            x[each, self.lines, bank] += change[:, None] * real
        groups = self.groups[bundle] + change
        if self.n_lacking:
            for i in (bundle == len(self.cells) - 1).nonzero().flatten().tolist():
                self._fill_lacking(x[i], v[i], groups[i])
        x, v, moved = self._balance(bundle, x, v, groups)
        return x, v, gain + moved

    def _exchange(self, budget: int) -> None:
        """Give every group of the budget to the bundle where its blocks are worth most.

        A bundle's score is concave in its groups, so it is enough that no last group is worth
        less per block than another bundle's next one. The prices bound both; solutions with one
        group more or less are found where the bounds leave a doubt.
        """
        n_bundles = len(self.groups)
        x, v = (torch.stack([t, t]) for t in (self.x, self.v))
        exact = torch.zeros(2, n_bundles, dtype=torch.bool, device=self.x.device)
        self.worth = worth = torch.stack(self._worths())
        # Where nearly all scores are equal the start can be as far off as a bundle has groups.
        for _ in range(_EXCHANGES + 2 * int(self.most.max())):
            worth[0] = torch.where(self.groups > 0, worth[0], torch.inf)
            worth[1] = torch.where(self.groups < self.most, worth[1], -torch.inf)
            # Last groups of all bundles, then their next groups: the dearest that can be paid.
            value = torch.cat([worth[0], torch.minimum(worth[0], worth[1])])
            order = torch.argsort(value, descending=True, stable=True)
            left = budget - ((self.groups - 1) * self.cost).sum()
            paid = (self.cost.repeat(2)[order].cumsum(dim=0) <= left).cumprod(dim=0)
            taken = torch.zeros_like(paid).scatter(0, order, paid).reshape(2, -1).bool()
            taken[1] &= self.groups < self.most
            side, bundle = torch.stack([~taken[0], taken[1]]).nonzero(as_tuple=True)
            if not bundle.numel():
                return
            change = 2 * side - 1
            new = ~exact[side, bundle]
            if bool(new.any()):
                side, bundle, change = side[new], bundle[new], change[new]
                x[side, bundle], v[side, bundle], gain = self._step(bundle, change)
                worth[side, bundle] = change * gain / self.cost[bundle]
                exact[side, bundle] = True
                continue
            self.x[bundle], self.v[bundle] = x[side, bundle], v[side, bundle]
            self.groups[bundle] += change
            # What was the next group is now the last one, and the other way round.
            bounds = torch.stack(self._worths())
            worth[1 - side, bundle] = worth[side, bundle]
            exact[1 - side, bundle] = False
            worth[side, bundle] = bounds[side, bundle]
            exact[side, bundle] = False

    def _row_prices(self) -> tuple[Tensor, Tensor]:
        """Least and greatest row prices that prove the counts, at the bank prices."""
        every = torch.arange(len(self.x), device=self.x.device)
        free, kept = self._edges(every, self.x)
        low = (free - self.v[:, None, :]).amax(dim=2)
        high = (kept - self.v[:, None, :]).amin(dim=2)
        span = self.highest - self.lowest + 1.0
        low = torch.where(torch.isfinite(low), low, high - span)
        high = torch.where(torch.isfinite(high), high, low + span)
        return torch.where(self.real, low, 0.0), torch.where(self.real, high, 0.0)

    def _worths(self) -> tuple[Tensor, Tensor]:
        """Per block: at most what the last group is worth, at least what the next one is."""
        if self.n_lacking:
            self.v[-1] -= self.v[-1].min()
        low, high = self._row_prices()
        return self._group_price(high) / self.cost, self._group_price(low) / self.cost

    def bound(self) -> float:
        """No mask with as many blocks on these bundles scores more, to rounding of the scores.

        The dual value of each bundle's prices bounds its score at its groups. A bundle's score is
        concave, so groups elsewhere gain at most what the worths, which bound the marginals, say
        against one common price of a block; in the best split that is nothing.
        """
        low, high = self._row_prices()
        u = 0.5 * (low + high)
        price = (u[:, :, None] + self.v[:, None, :]).to(self.cells.dtype)
        surplus = (self.cells - price[..., None]).clamp_min_(0.0).sum(dtype=torch.float64)
        dual = surplus + (self._group_price(u) * self.groups).sum()
        last, following = self.worth
        common = following.max().clamp_max(last.min())
        if bool(torch.isinf(common)):
            common = last.min() if bool(torch.isfinite(last.min())) else following.max()
        excess = (following - common).clamp_min(0.0) * (self.most - self.groups)
        lack = (common - last).clamp_min(0.0) * self.groups
        return float(dual + ((excess.nan_to_num() + lack.nan_to_num()) * self.cost).sum())


def _best_paths(moves: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Bellman and Ford's longest paths over banks from any of several starts, in all bundles.

    Parameters
    ----------
    moves
        Shape (n, n_banks, n_banks): gain of each edge, at most 0.
    start
        Shape (n, n_banks), bool.

    Returns
    -------
    tuple of Tensor
        Shape (n, n_banks): gain of the best path to each bank, and the bank before it (-1: none).
    """
    reach = torch.where(start, 0.0, -torch.inf).to(moves.dtype)
    came = torch.full_like(reach, -1, dtype=torch.int64)
    for _ in range(moves.shape[1]):
        best, source = (reach[:, :, None] + moves).max(dim=1)
        better = best > reach
        if not bool(better.any()):
            break
        reach = torch.where(better, best, reach)
        came = torch.where(better, source, came)
    return reach, came


def _follow(x: Tensor, at: Tensor, came: Tensor, end: Tensor, free: Tensor, kept: Tensor) -> Tensor:
    """Move one block along each path, from its end to where it came from; the first banks."""
    first = end.clone()
    each = torch.arange(len(at), device=at.device)
    while True:
        source = came[each, end]
        going = source >= 0
        each, source, end = each[going], source[going], end[going]
        if not each.numel():
            return first
        row = (free[each, :, end] - kept[each, :, source]).argmax(dim=1)
        x[at[each], row, end] += 1
        x[at[each], row, source] -= 1
        first[each] = end = source
