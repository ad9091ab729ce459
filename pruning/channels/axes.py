"""Which axes of tensors hold the same channels, and must be permuted alike.

An axis of a tensor either has an order that is given (the reason is a string), or is a run of
segments, each all channels of one :class:`Space`. Operations move, join, cut and merge axes;
joining two ties their spaces. A space that would have to be torn apart is refused, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Space:
    """Channels whose order is free, as long as all who hold them agree.

    Spaces that were tied together are one: a union-find forest, read through :attr:`root`.
    """

    def __init__(self, n_channels: int, refused: str | None = None) -> None:
        self.n_channels = n_channels
        self._refused = refused
        self._parent: Space | None = None

    @property
    def root(self) -> "Space":
        if self._parent is None:
            return self
        self._parent = self._parent.root
        return self._parent

    @property
    def refused(self) -> str | None:
        """Why the order must stay; None while it is free."""
        return self.root._refused

    def refuse(self, reason: str) -> None:
        """Keep the order. The first reason stands."""
        self.root._refused = self.root._refused or reason

    def tie(self, other: "Space") -> None:
        """Make one space of two, channel by channel."""
        mine, others = self.root, other.root
        if mine is not others:
            others._parent = mine
            mine._refused = mine._refused or others._refused


class Segment(NamedTuple):
    """All channels of a space, each ``inner`` times in a row (its pixels, once flattened)."""

    space: Space
    inner: int = 1

    @property
    def width(self) -> int:
        return self.space.n_channels * self.inner


Axis = str | tuple[Segment, ...]
"""Why the order is given, or whose channels lie along the axis."""


@dataclass(frozen=True)
class Layout:
    """What lies along each axis of a tensor."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]

    def replace(self, axis: int, content: Axis) -> "Layout":
        """The same with another axis, counted from either end."""
        axes = list(self.axes)
        axes[axis] = content
        return Layout(self.shape, tuple(axes))


def given(shape: Any, reason: str) -> Any:
    """Layouts of a value whose order is given."""
    if isinstance(shape, torch.Size):
        return Layout(tuple(shape), (reason,) * len(shape))
    return tuple(given(part, reason) for part in shape) if isinstance(shape, tuple) else None


@dataclass(frozen=True)
class Stack:
    """Layouts along a new first axis: a recurrent layer's last states, one per layer."""

    parts: tuple[Layout, ...]


def layouts(value: Any) -> list[Layout]:
    if isinstance(value, Layout):
        return [value]
    parts = value.parts if isinstance(value, Stack) else value
    return [layout for part in parts for layout in layouts(part)] if parts else []


def refuse(axis: Axis, reason: str) -> None:
    """Keep the order of whatever lies along an axis."""
    if not isinstance(axis, str):
        for segment in axis:
            segment.space.refuse(reason)


def segments(axis: Axis, width: int) -> tuple[Segment, ...]:
    """An axis as segments: a given order becomes a refused space of its own."""
    return (Segment(Space(width, axis)),) if isinstance(axis, str) else axis


def widths(axis: Sequence[Segment]) -> list[tuple[int, int]]:
    return [(segment.space.n_channels, segment.inner) for segment in axis]


def tie(a: Axis, b: Axis, where: str) -> Axis:
    """Join two axes element by element.

    Parameters
    ----------
    where
        Who joins them, for the reason of a refusal.
    """
    if isinstance(a, str) or isinstance(b, str):
        fixed, other = (a, b) if isinstance(a, str) else (b, a)
        if not isinstance(other, str):
            refuse(other, f"{where} joins them with others: {fixed}")
        return fixed
    if widths(a) != widths(b):
        reason = f"{where} joins channels that are concatenated or flattened differently"
        refuse(a, reason)
        refuse(b, reason)
        return reason
    for mine, other in zip(a, b):
        mine.space.tie(other.space)
    return a


def cut(axis: Axis, start: int, stop: int, where: str) -> Axis:
    """Part of an axis: whole segments, or their order must stay."""
    if isinstance(axis, str):
        return axis
    taken, at = [], 0
    for segment in axis:
        if start <= at and at + segment.width <= stop:
            taken.append(segment)
        elif at < stop and start < at + segment.width:
            reason = f"{where} takes {start}:{stop} of them"
            refuse(axis, reason)
            return reason
        at += segment.width
    return tuple(taken)


def broadcast(operands: Sequence[Layout], shape: tuple[int, ...], where: str) -> Layout:
    """An element-wise operation: axes are aligned from the last, those of width 1 are repeated."""
    axes: list[Axis] = []
    for place in range(-len(shape), 0):
        joined: Axis | None = None
        for operand in operands:
            if len(operand.shape) >= -place and operand.shape[place] == shape[place]:
                axis = operand.axes[place]
                joined = axis if joined is None else tie(joined, axis, where)
        axes.append(f"{where} repeats a value" if joined is None else joined)
    return Layout(shape, tuple(axes))


def reshape(layout: Layout, shape: tuple[int, ...], where: str) -> Layout:
    """The same elements in the same order under another shape.

    Channels survive a merge with what lies inside (flatten) or outside of them, and the reverse of
    the former; any other split or merge keeps their order.
    """
    old = [i for i, size in enumerate(layout.shape) if size != 1]
    new = [i for i, size in enumerate(shape) if size != 1]
    axes: list[Axis] = [f"{where} adds an axis"] * len(shape)
    while old and new:
        # The fewest axes of both that hold as many elements.
        take, give = [old.pop(0)], [new.pop(0)]
        before, after = layout.shape[take[0]], shape[give[0]]
        while before != after:
            if before < after:
                take.append(old.pop(0))
                before *= layout.shape[take[-1]]
            else:
                give.append(new.pop(0))
                after *= shape[give[-1]]
        contents = [layout.axes[i] for i in take]
        sizes = [layout.shape[i] for i in take]
        for place, axis in zip(give, _regroup(contents, sizes, [shape[i] for i in give], where)):
            axes[place] = axis
    return Layout(shape, tuple(axes))


def _regroup(
    contents: list[Axis], sizes: list[int], new_sizes: list[int], where: str
) -> list[Axis]:
    if len(contents) == len(new_sizes) == 1:
        return contents
    tracked = [i for i, axis in enumerate(contents) if not isinstance(axis, str)]
    if not tracked:
        return [contents[0]] * len(new_sizes)
    axis = segments(contents[tracked[0]], 0)
    if len(new_sizes) == 1 and len(tracked) == 1:
        outer = _product(sizes[: tracked[0]])
        inner = _product(sizes[tracked[0] + 1 :])
        return [tuple(Segment(s.space, s.inner * inner) for s in axis) * outer]
    pixels = _product(new_sizes[1:])
    if len(contents) == 1 and all(segment.inner % pixels == 0 for segment in axis):
        merged = tuple(Segment(s.space, s.inner // pixels) for s in axis)
        return [merged, *[f"{where} splits pixels off"] * (len(new_sizes) - 1)]
    reason = f"{where} reshapes {tuple(sizes)} to {tuple(new_sizes)} across them"
    for content in contents:
        refuse(content, reason)
    return [reason] * len(new_sizes)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def transpose(x: Layout, axes: Sequence[int], shape: tuple[int, ...]) -> Layout:
    """Axis i of the result is axis ``axes[i]``."""
    return Layout(shape, tuple(x.axes[axis] for axis in axes))


def reduce_axes(x: Layout, gone: Sequence[int], shape: tuple[int, ...], where: str) -> Layout:
    """A sum or extremum over whole axes: their order does not matter."""
    gone = [axis % len(x.shape) for axis in gone]
    if len(shape) == len(x.shape):
        one = f"{where} has reduced them"
        return Layout(shape, tuple(one if i in gone else a for i, a in enumerate(x.axes)))
    return Layout(shape, tuple(axis for i, axis in enumerate(x.axes) if i not in gone))


def index(x: Layout, parts: Sequence, shape: tuple[int, ...], where: str) -> Layout:
    """Basic indexing by integers, slices of integers, None and ``...``."""
    n_taken = sum(part not in (None, Ellipsis) for part in parts)
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    whole = [slice(None)] * (len(x.shape) - n_taken)
    axes: list[Axis] = []
    place = 0
    for part in [*parts[:at], *whole, *parts[at + 1 :]]:
        if part is None:
            axes.append(f"{where} adds an axis")
            continue
        content, size = x.axes[place], x.shape[place]
        place += 1
        if isinstance(part, int):
            refuse(content, f"{where} takes one of them")
            continue
        start, stop, step = part.indices(size)
        if step != 1:
            refuse(content, f"{where} takes them in steps of {step}")
        axes.append(cut(content, start, stop, where) if step == 1 else f"{where} takes some")
    return Layout(shape, tuple(axes))
