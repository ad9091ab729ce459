"""Recipes: what to prune, into which pattern, how fast, and what else to do about accuracy.

A recipe is a TOML file (docs/pruning.md shows one, whole). Every rule is checked when it is read;
:meth:`Recipe.as_dict` is its resolved, canonical form, which goes into artefacts.
"""

import dataclasses
import enum
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from gshw.config import Config, EngineConfig, load_config, parse_config, preset_names
from gshw.errors import GshwError
from gshw.quantise import RangeMethod
from pruning.checks import is_integer, require
from pruning.methods.registry import METHODS, Method, OneShot
from pruning.patterns.pattern import Pattern
from pruning.patterns.registry import make_pattern
from pruning.scores import Score
from pruning.settings import (
    Channels,
    Compensation,
    LayerRule,
    QuantisationChoice,
    Recovery,
    ScoreChoice,
    SparsityTarget,
)
from pruning.targets import Scope

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a pruning run, but for model and data.

    Parameters
    ----------
    config
        The engine.
    pattern
        Of every mask; made for ``config``.
    layers
        Of the rules that match a name, the last wins, key by key.
    seed
        Of whatever is random, at least 0.

    Raises
    ------
    GshwError
        Naming the key, the rule and the value.
    """

    config: Config
    pattern: Pattern
    target: SparsityTarget
    layers: tuple[LayerRule, ...] = ()
    score: ScoreChoice = field(default_factory=ScoreChoice)
    method: Method = field(default_factory=OneShot)
    channels: Channels = field(default_factory=Channels)
    compensation: Compensation = field(default_factory=Compensation)
    quantisation: QuantisationChoice = field(default_factory=QuantisationChoice)
    seed: int = 0

    def __post_init__(self) -> None:
        good = is_integer(self.seed) and self.seed >= 0
        require(good, "seed", "an integer of at least 0", self.seed)
        width, most = self.quantisation.weight_width, self.config.engine.weight_width
        if width is not None:
            rule = f"at most the engine's {most}"
            require(width <= most, "[quantisation] weight_width", rule, width)
        stop, live = self.method.settled, self.quantisation.aware_from
        # A batch norm folded on the way would move the weights under the method's feet.
        rule = f"at least {stop:g}, where method {self.method.kind!r} has settled"
        require(live >= stop, "[quantisation] aware_from", rule, live)

    @property
    def weight_width(self) -> int:
        """Bits of a weight: the recipe's, else the engine's."""
        return self.quantisation.weight_width or self.config.engine.weight_width

    def rule(self, name: str) -> tuple[bool, float | None]:
        """Whether the weight of a name is skipped, and its own sparsity if it has one."""
        skip, sparsity = False, None
        for rule in self.layers:
            if fnmatchcase(name, rule.match):
                skip = skip if rule.skip is None else rule.skip
                sparsity = sparsity if rule.sparsity is None else rule.sparsity
        return skip, sparsity

    def check_names(self, names: list[str], unprunable: list[str]) -> None:
        """Refuse a rule that means nothing in a model.

        Raises
        ------
        GshwError
            For a glob that matches no name, listing them. To skip what cannot be pruned anyway is
            no mistake.
        """
        for rule in self.layers:
            among = names + unprunable if rule.skip else names
            if not any(fnmatchcase(name, rule.match) for name in among):
                raise GshwError(
                    f"no layer matches {rule.match!r} of the recipe; the layers are "
                    f"{', '.join(names)}"
                )

    @staticmethod
    def from_dict(
        document: Mapping[str, Any], config: Config | None = None, folder: Path = Path()
    ) -> "Recipe":
        """A recipe from parsed TOML or from :meth:`as_dict`.

        Parameters
        ----------
        document
            ``engine`` names a preset or a file, or is an ``[engine]`` table itself.
        config
            Used instead of what ``engine`` says.
        folder
            That a file's relative path starts from.

        Raises
        ------
        GshwError
            For an unknown section or key (naming those there are), or a broken rule.
        """
        _check_keys(document, list(_SECTIONS), "unknown key or section", "there are")
        config = _config(document.get("engine"), config, folder)
        sections = {
            key: _section(key, document[key])
            for key in ("target", "score", "channels", "compensation", "quantisation")
            if key in document
        }
        if "target" not in sections:
            raise GshwError("needs a section [target]")
        return Recipe(
            config=config,
            pattern=_pattern(config.engine, _table("pattern", document.get("pattern"))),
            layers=_rules(document.get("layer", [])),
            method=_method(_table("method", document.get("method", {"kind": OneShot.kind}))),
            seed=document.get("seed", 0),
            **sections,
        )

    def as_dict(self) -> dict[str, Any]:
        """Every key with its TOML value, defaults filled in; :meth:`from_dict` reads it back."""
        return {
            "engine": self.config.engine.canonical(),
            "seed": self.seed,
            "pattern": {"kind": self.pattern.kind, **_plain(self.pattern)},
            "target": _plain(self.target),
            "layer": [_plain(rule) for rule in self.layers],
            "score": _plain(self.score),
            "method": {"kind": self.method.kind, **_plain(self.method)},
            "channels": _plain(self.channels),
            "compensation": _plain(self.compensation),
            "quantisation": {**_plain(self.quantisation), "weight_width": self.weight_width},
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the canonical form; equal iff the recipes are equal."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_SECTIONS: dict[str, type | None] = {
    "engine": None,
    "seed": None,
    "pattern": None,
    "target": SparsityTarget,
    "layer": LayerRule,
    "score": ScoreChoice,
    "method": None,
    "channels": Channels,
    "compensation": Compensation,
    "quantisation": QuantisationChoice,
}
_ENUMS: dict[str, dict[str, type[enum.Enum]]] = {
    "target": {"scope": Scope},
    "score": {"kind": Score},
    "compensation": {"kind": Recovery},
    "quantisation": {"activations": RangeMethod},
}


def load_recipe(path: str | Path, config: Config | None = None) -> Recipe:
    """Read a recipe file.

    Parameters
    ----------
    config
        Used instead of the engine that the recipe names.

    Raises
    ------
    GshwError
        Prefixed with the file's name; also for a file that is missing or unreadable.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return Recipe.from_dict(document, config, path.parent)
    except FileNotFoundError:
        raise GshwError(f"{path}: no such recipe") from None
    except tomllib.TOMLDecodeError as error:
        raise GshwError(f"{path}: not valid TOML: {error}") from None
    except GshwError as error:
        raise GshwError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GshwError(f"{path}: cannot be read: {error}") from None


def _check_keys(table: Mapping[str, Any], known: list[str], what: str, they: str) -> None:
    for key in table:
        if key not in known:
            raise GshwError(f"{what} {key!r}; {they} {', '.join(known)}")


def _table(section: str, value: object) -> dict[str, Any]:
    if value is None:
        raise GshwError(f"needs a section [{section}]")
    if not isinstance(value, Mapping):
        raise GshwError(f"{section} must be a section, not {value!r}")
    return dict(value)


def _make(kind: type[_T], section: str, table: dict[str, Any]) -> _T:
    """A section's dataclass from its keys."""
    fields = [f for f in dataclasses.fields(kind) if f.init]  # type: ignore[arg-type]
    names = [f.name for f in fields]
    _check_keys(table, names, f"[{section}] has no key", "its keys are")
    for f in fields:
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in table:
            raise GshwError(f"[{section}] needs the key {f.name!r}")
    values = dict(table)
    try:
        for key, choices in _ENUMS.get(section, {}).items():
            if key in values:
                values[key] = _choice(choices, key, values[key])
        return kind(**values)
    except GshwError as error:
        raise GshwError(f"[{section}] {error}") from None


def _section(section: str, value: object) -> Any:
    kind = _SECTIONS[section]
    assert kind is not None
    return _make(kind, section, _without_none(_table(section, value)))


def _choice(choices: type[enum.Enum], key: str, value: object) -> enum.Enum:
    names = [member.value for member in choices]
    if value not in names:
        raise GshwError(f"{key} must be one of {', '.join(names)}, not {value!r}")
    return choices(value)


def _kind(section: str, table: dict[str, Any]) -> str:
    if "kind" not in table:
        raise GshwError(f"[{section}] needs the key 'kind'")
    kind = table.pop("kind")
    require(isinstance(kind, str), f"[{section}] kind", "a string", kind)
    return kind


def _rules(value: object) -> tuple[LayerRule, ...]:
    if not isinstance(value, list):
        raise GshwError("layer must be written [[layer]], once per rule")
    return tuple(_section("layer", entry) for entry in value)


def _method(table: dict[str, Any]) -> Method:
    kind = _kind("method", table)
    if kind not in METHODS:
        raise GshwError(f"[method] kind must be one of {', '.join(METHODS)}, not {kind!r}")
    return _make(METHODS[kind], "method", table)


def _pattern(config: EngineConfig, table: dict[str, Any]) -> Pattern:
    kind = _kind("pattern", table)
    return make_pattern(config, kind, table)


def _config(engine: object, config: Config | None, folder: Path) -> Config:
    """The caller's config, else the one that the recipe's ``engine`` says."""
    if config is not None:
        return config
    if engine is None:
        raise GshwError("needs the key 'engine': a preset, or a file relative to the recipe")
    if isinstance(engine, Mapping):
        lines = [f"{key} = {json.dumps(value)}" for key, value in engine.items()]
        return parse_config("\n".join(["[engine]", *lines]), name="recipe")
    if not isinstance(engine, str):
        raise GshwError(f"engine must be a preset's name, a path or a table, not {engine!r}")
    return load_config(engine if engine in preset_names() else folder / engine)


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null; the canonical form writes what is not given as None."""
    return {key: value for key, value in table.items() if value is not None}


def _plain(settings: Any) -> dict[str, Any]:
    """Fields of a dataclass as TOML values; the engine is a section of its own."""
    return {
        f.name: value.value if isinstance(value, enum.Enum) else value
        for f in dataclasses.fields(settings)
        for value in [getattr(settings, f.name)]
        if not isinstance(value, EngineConfig)
    }
