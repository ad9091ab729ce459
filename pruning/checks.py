"""Checks of parameters, as one line that says what, the rule and the value."""

import pickle

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


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters; else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:197]}..."


def unreadable(error: BaseException) -> str:
    """Why ``torch.load`` does not read a file, without its advice to trust strangers."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other things than tensors and plain values, or nothing of torch.save"
    return first_line(error)
