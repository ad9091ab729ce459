"""The sections of a recipe, each checked by itself."""

import enum
from dataclasses import dataclass

from gshw.errors import GshwError
from gshw.quantise import RangeMethod, check_percentile
from pruning.checks import is_integer, is_number, require
from pruning.patterns.pattern import check_sparsity
from pruning.scores import Score
from pruning.targets import Scope


class Recovery(enum.Enum):
    """How kept weights make up for pruned ones without training."""

    NONE = "none"
    LEAST_SQUARES = "least-squares"


def _require_flag(key: str, value: object) -> None:
    require(isinstance(value, bool), key, "true or false", value)


def _require_sparsity(value: object) -> None:
    require(is_number(value), "sparsity", "a number", value)
    check_sparsity(float(value))


@dataclass(frozen=True, kw_only=True)
class SparsityTarget:
    """How sparse.

    Parameters
    ----------
    sparsity
        In [0, 1).
    scope
        Whether every layer reaches it, or all together.
    """

    sparsity: float
    scope: Scope = Scope.LAYER

    def __post_init__(self) -> None:
        _require_sparsity(self.sparsity)


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """What holds for weights of some names only.

    Parameters
    ----------
    match
        Glob over the names of :func:`pruning.models.weights.find_weights`; case matters.
    sparsity
        Of each of them, whatever the scope. None: as the others.
    skip
        Whether they stay dense. None: as the others.
    """

    match: str
    sparsity: float | None = None
    skip: bool | None = None

    def __post_init__(self) -> None:
        good = isinstance(self.match, str) and self.match != ""
        require(good, "match", "a glob", self.match)
        if self.sparsity is not None:
            _require_sparsity(self.sparsity)
        if self.skip is not None:
            _require_flag("skip", self.skip)
        if self.sparsity is None and self.skip is None:
            raise GshwError(f"the rule for {self.match!r} must set sparsity or skip")


@dataclass(frozen=True, kw_only=True)
class ScoreChoice:
    """What a weight is worth.

    Parameters
    ----------
    kind
        See :mod:`pruning.scores`.
    function
        ``package.module:name`` of a score of the user's own.
    """

    kind: Score = Score.MAGNITUDE
    function: str | None = None

    def __post_init__(self) -> None:
        if self.function is not None:
            require(isinstance(self.function, str), "function", "a string", self.function)
        if (self.kind is Score.FUNCTION) != (self.function is not None):
            raise GshwError("function must be given exactly when kind is 'function'")


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Order of input channels.

    Parameters
    ----------
    deal
        Choose each channel's bank, and fold the order into the producing layers.
    """

    deal: bool = False

    def __post_init__(self) -> None:
        _require_flag("deal", self.deal)


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """What :func:`pruning.pruner.prune` does to accuracy without training.

    Parameters
    ----------
    kind
        Whether kept weights are solved anew on calibration batches.
    steps
        Of conjugate gradients, at least 1.
    integer
        Solve for codes of the weight width times a scale per row, which export finds again.
    batch_norm
        Re-estimate running statistics on calibration batches.
    """

    kind: Recovery = Recovery.NONE
    steps: int = 10
    integer: bool = True
    batch_norm: bool = True

    def __post_init__(self) -> None:
        good = is_integer(self.steps) and self.steps >= 1
        require(good, "steps", "an integer of at least 1", self.steps)
        _require_flag("integer", self.integer)
        _require_flag("batch_norm", self.batch_norm)


@dataclass(frozen=True, kw_only=True)
class QuantisationChoice:
    """From float to the engine's integers.

    Parameters
    ----------
    weight_width
        Bits of a weight, 2 to the engine's. None: the engine's.
    activations, percentile
        Of the ranges; see :func:`gshw.quantise.activation_range`.
    aware_from
        Fraction of the training after which fake quantisation is live; 1: never.
    """

    weight_width: int | None = None
    activations: RangeMethod = RangeMethod.PERCENTILE
    percentile: float = 99.99
    aware_from: float = 1.0

    def __post_init__(self) -> None:
        if self.weight_width is not None:
            good = is_integer(self.weight_width) and self.weight_width >= 2
            require(good, "weight_width", "an integer of at least 2", self.weight_width)
        require(is_number(self.percentile), "percentile", "a number", self.percentile)
        check_percentile(self.percentile)
        good = is_number(self.aware_from) and 0 <= self.aware_from <= 1
        require(good, "aware_from", "from 0 to 1", self.aware_from)
