"""Print and draw the worked example of docs/pruning.md: ``python scripts/draw_pruning.py``.

Four lanes, four rows, a 4 x 8 matrix. Writes docs/images/pruning_example.png, and prints the
page's table of kept scores.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from gshw.config import EngineConfig
from gshw.encoding import Requantisation, encode_layer
from gshw.geometry import Geometry
from pruning.patterns.gs import Gs
from pruning.patterns.pattern import RowGrouping, ScoredMatrix

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

BANKS = 4
ENGINE = EngineConfig(lanes=BANKS, rows=BANKS, bank_width=8)
GEOMETRY = Geometry.linear(8)
SCORES = np.array(
    [
        [10, 5, 5, 7, 12, 19, 8, 20],
        [9, 8, 2, 15, 19, 1, 5, 18],
        [17, 16, 3, 5, 12, 12, 14, 2],
        [14, 11, 13, 4, 1, 4, 5, 19],
    ]
)
N_GROUPS = 2
COLOURS = ("#4477aa", "#ee7733", "#228833", "#aa3377")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "pruning_example.png"


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices (u of rows, v of banks) that prove a mask, and the value that they bound."""

    u: NDArray[np.int64]
    v: NDArray[np.int64]
    dual: int


def unstructured(scores: NDArray, n_kept: int) -> NDArray[np.bool_]:
    """The largest scores anywhere."""
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:n_kept]] = True
    return mask.reshape(scores.shape)


def bank_counts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return mask.reshape(len(mask), -1, BANKS).sum(axis=(0, 1))


def best_mask(n_groups: int) -> NDArray[np.bool_]:
    matrix = ScoredMatrix(name="example", scores=SCORES.astype(float), geometry=GEOMETRY)
    return Gs(config=ENGINE).project(matrix, 1.0 - n_groups * BANKS / SCORES.size).mask


def prices(mask: NDArray[np.bool_]) -> Prices:
    """Prices of an optimal mask by Bellman and Ford over the banks; integers, for the page."""
    cells = SCORES.reshape(len(SCORES), -1, BANKS)
    kept = mask.reshape(cells.shape)
    least = np.where(kept, cells, 99).min(axis=1)
    free = np.where(kept, -99, cells).max(axis=1)
    # A block may leave bank j for bank l in any row; in the end no such move is worth its price.
    moves = (free[:, None, :] - least[:, :, None]).max(axis=0)
    v = np.zeros(BANKS, dtype=np.int64)
    for _ in range(BANKS):
        v = np.maximum(v, (v[:, None] + moves).max(axis=0))
    v -= v.min()
    low, high = (free - v).max(axis=1), (least - v).min(axis=1)
    assert (low <= high).all(), "the mask is not optimal"
    u = (low + high) // 2
    excess = np.maximum(SCORES - (u[:, None] + np.tile(v, 2)), 0)
    dual = int(excess.sum()) + int(mask.sum()) // BANKS * int(u.sum() + v.sum())
    return Prices(u=u, v=v, dual=dual)


def schedule(mask: NDArray[np.bool_]) -> list[list[tuple[int, int] | None]]:
    """Per group and row: (column, score) of its slot, or None where it is empty."""
    layer = encode_layer(
        ENGINE,
        "example",
        np.where(mask, SCORES, 0),
        GEOMETRY,
        Requantisation(
            bias=np.zeros(4, dtype=np.int64),
            multiplier=np.full(4, 1 << 15),
            shift=np.full(4, 15),
            low=-128,
            high=127,
        ),
    )
    groups = []
    for value, offset, bank in zip(layer.value[:, :, 0], layer.offset, layer.bank, strict=True):
        column = offset[bank] * BANKS + bank
        slots = zip(column, value, strict=True)
        groups.append([(int(c), int(s)) if s else None for c, s in slots])
    return groups


def draw_matrix(axes: Axes, mask: NDArray[np.bool_], title: str, prices: Prices | None) -> None:
    """Scores as a heat map, kept ones in their bank's colour, counts at the margins."""
    n_rows, n_columns = SCORES.shape
    axes.imshow(SCORES, cmap="Greys", vmin=0, vmax=45)
    for (row, column), score in np.ndenumerate(SCORES):
        kept = mask[row, column]
        if kept:
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, color=COLOURS[column % BANKS]))
        axes.text(
            column,
            row,
            str(score),
            ha="center",
            va="center",
            color="white" if kept else "#555555",
            weight="bold" if kept else "normal",
        )
    in_row, in_bank = mask.sum(axis=1), bank_counts(mask)
    for row in range(n_rows):
        wrong = in_row[row] != N_GROUPS
        text = f"keeps {in_row[row]}"
        if prices is not None:
            text += f"   u = {prices.u[row]}"
        axes.text(n_columns - 0.3, row, text, va="center", color="#cc0000" if wrong else "black")
    for bank in range(BANKS):
        wrong = in_bank[bank] != N_GROUPS
        text = f"bank {bank}: {in_bank[bank]}"
        if prices is not None:
            text += f"\nv = {prices.v[bank]}"
        axes.text(
            2 * bank + 0.5,
            n_rows + 0.05,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color="white",
            weight="bold",
            bbox={
                "boxstyle": "round",
                "facecolor": COLOURS[bank],
                "edgecolor": "#cc0000" if wrong else "none",
                "linewidth": 2.5,
            },
        )
    for column in range(n_columns):
        colour = COLOURS[column % BANKS]
        axes.text(column, -0.75, f"b{column % BANKS}", ha="center", color=colour, weight="bold")
    axes.set(yticks=range(n_rows), yticklabels=[f"row {i}" for i in range(n_rows)], xticks=[])
    axes.set_title(title, pad=26)
    axes.set_ylim(n_rows + 0.45, -0.5)
    axes.set_xlim(-0.5, n_columns - 0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_schedule(axes: Axes, groups: list[list[tuple[int, int] | None]], title: str) -> None:
    """One line per cycle, one slot per lane; the colour says which bank is read."""
    for cycle, slots in enumerate(groups):
        for lane, slot in enumerate(slots):
            corner = (2 * lane + 0.05, cycle + 0.08)
            if slot is None:
                axes.add_patch(
                    Rectangle(corner, 1.9, 0.84, fill=False, hatch="////", edgecolor="#bbbbbb")
                )
                continue
            column, score = slot
            axes.add_patch(Rectangle(corner, 1.9, 0.84, color=COLOURS[column % BANKS]))
            axes.text(
                2 * lane + 1,
                cycle + 0.5,
                f"{score}  (b{column % BANKS})",
                ha="center",
                va="center",
                color="white",
                weight="bold",
            )
    axes.set(xlim=(0, 8), ylim=(4.05, 0), title=title)
    axes.set_yticks(
        [i + 0.5 for i in range(len(groups))], [f"cycle {i}" for i in range(len(groups))]
    )
    axes.set_xticks([1, 3, 5, 7], [f"lane {i}: row {i}" for i in range(BANKS)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def print_kept_scores() -> None:
    """Kept scores at 90 % relative to unstructured: consecutive rows and scatter, 1024 x 1024."""
    rng = np.random.default_rng(0)
    n = 1024
    gaussian = np.abs(rng.normal(size=(n, n)))
    heavy = np.abs(rng.standard_t(4, (n, n)))
    heavy *= np.exp(0.5 * rng.normal(size=(n, 1))) * np.exp(0.5 * rng.normal(size=(1, n)))
    for name, scores in (("gaussian", gaussian), ("heavy", heavy)):
        most = float(scores[unstructured(scores, round(0.1 * scores.size))].sum())
        matrix = ScoredMatrix(name=name, scores=scores, geometry=Geometry.linear(n))
        for lanes, rows in ((16, 16), (16, 4), (16, 1), (64, 64), (64, 1)):
            engine = EngineConfig(lanes=lanes, rows=rows, bank_width=8)
            kept = [
                Gs(config=engine, grouping=grouping).project(matrix, 0.9).kept_score / most
                for grouping in (RowGrouping.CONSECUTIVE, RowGrouping.SCATTER)
            ]
            print(f"{name} {engine.pattern_name}: {kept[0]:.4f} {kept[1]:.4f}")


def main() -> None:
    first = unstructured(SCORES, N_GROUPS * BANKS)
    mask = best_mask(N_GROUPS)
    found = prices(mask)
    kept = int(SCORES[mask].sum())
    assert kept == found.dual, "the prices do not prove the mask"
    print("unstructured keeps", int(SCORES[first].sum()), "in rows", first.sum(axis=1), end=" ")
    print("and banks", bank_counts(first))
    for n_groups in range(1, 8):
        best = best_mask(n_groups)
        value, proof = int(SCORES[best].sum()), prices(best)
        print(f"{n_groups} groups keep {value} (bound {proof.dual}), u {proof.u}, v {proof.v}")
        print(np.where(best, SCORES, 0))
    groups = {name: schedule(m) for name, m in (("unstructured", first), ("GS", mask))}
    for name, cycles in groups.items():
        print(name, cycles)
    figure, axes = plt.subplots(
        2, 2, figsize=(12.5, 6.2), layout="constrained", height_ratios=[1.25, 1]
    )
    total = int(SCORES[first].sum())
    draw_matrix(axes[0, 0], first, f"the 8 largest scores: {total}, not balanced", None)
    draw_matrix(
        axes[0, 1], mask, f"the best GS(4, 1) mask: {kept}, and prices that prove it", found
    )
    for place, name in zip(axes[1], groups, strict=True):
        n_empty = sum(slot is None for cycle in groups[name] for slot in cycle)
        note = f"{len(groups[name])} cycles, " + (
            f"{n_empty} slots empty" if n_empty else "every slot full"
        )
        draw_schedule(place, groups[name], note)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight")
    print_kept_scores()


if __name__ == "__main__":
    main()
