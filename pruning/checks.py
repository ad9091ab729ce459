"""Checks of parameters, as one line that says what, the rule and the value."""

from gshw.errors import GshwError


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise ``key must be rule, not value`` unless the condition holds."""
    if not condition:
        raise GshwError(f"{key} must be {rule}, not {value!r}")


def is_integer(value: object) -> bool:
    """An int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """An int or a float, and not a bool."""
    return is_integer(value) or isinstance(value, float)
