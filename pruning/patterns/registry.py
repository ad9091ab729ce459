"""Patterns by the name that recipes use, made from plain values."""

import dataclasses
import enum
from collections.abc import Mapping

from gshw.config import EngineConfig
from gshw.errors import GshwError
from pruning.patterns.greedy import Greedy
from pruning.patterns.gs import Gs
from pruning.patterns.neighbours import (
    Block,
    BlockColumnRow,
    Node,
    RowColumn,
    SimdVector,
    Unstructured,
)
from pruning.patterns.neighbours_kernels import BlockPunched, Granular, KernelGroup, KernelPattern
from pruning.patterns.neighbours_rows import (
    BankBalanced,
    DensityAdaptive,
    NOfM,
    PeBalanced,
    Polarised,
)
from pruning.patterns.pattern import Pattern

PATTERNS: dict[str, type[Pattern]] = {
    pattern.kind: pattern
    for pattern in (
        Gs,
        Greedy,
        Unstructured,
        Block,
        SimdVector,
        Node,
        Granular,
        BankBalanced,
        NOfM,
        PeBalanced,
        DensityAdaptive,
        BlockColumnRow,
        KernelGroup,
        BlockPunched,
        KernelPattern,
        RowColumn,
        Polarised,
    )
}
"""Every pattern, by its ``kind``."""


def make_pattern(config: EngineConfig, kind: str, parameters: Mapping[str, object]) -> Pattern:
    """A pattern from a recipe's table.

    Parameters
    ----------
    config
        Given to the patterns that an engine dictates.
    kind
        A key of :data:`PATTERNS`.
    parameters
        Fields of the pattern; choices as the value of their enum. Fields left out have defaults.

    Raises
    ------
    GshwError
        For an unknown kind or parameter, or a value that does not suit, listing what there is.
    """
    if kind not in PATTERNS:
        raise GshwError(f"pattern kind must be one of {', '.join(PATTERNS)}, not {kind!r}")
    fields = {field.name: field for field in dataclasses.fields(PATTERNS[kind])}
    own = {"config": config} if fields.pop("config", None) else {}
    values = {}
    for name, value in parameters.items():
        if name not in fields:
            known = f"its parameters are {', '.join(fields)}" if fields else "it has none"
            raise GshwError(f"pattern {kind!r} has no parameter {name!r}; {known}")
        values[name] = _value(kind, fields[name], value)
    try:
        return PATTERNS[kind](**own, **values)
    except GshwError as error:
        raise GshwError(f"pattern {kind!r}: {error}") from None


def _value(kind: str, field: dataclasses.Field, value: object) -> object:
    choices = field.type
    if not (isinstance(choices, type) and issubclass(choices, enum.Enum)):
        return value
    known = [choice.value for choice in choices]
    if value not in known:
        raise GshwError(
            f"pattern {kind!r}: {field.name} must be one of {', '.join(known)}, not {value!r}"
        )
    return choices(value)
