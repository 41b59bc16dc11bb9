"""Kubernetes' quantities, written as an API server stores them.

A child that is sent in another notation would differ from what is stored for ever.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]{1,3})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
QUANTITY_MAX = 20
"""Longest quantity, characters."""

_BINARY = tuple((f"{letter}i", 2 ** (10 * power)) for power, letter in enumerate("KMGTPE", 1))[::-1]
_DECIMAL = tuple((letter, 10 ** (3 * power)) for power, letter in enumerate("kMGTPE", 1))[::-1]
_SMALL = (("", 1), ("m", 1000), ("u", 10**6), ("n", 10**9))


def canonical_quantity(value: int | str) -> str:
    """Return a quantity in the one notation in which it is stored.

    Args:
        value: A number, or text that fits `QUANTITY_PATTERN`.
    """
    number = quantity_value(value)
    if str(value).endswith("i") and number >= 1024:
        return _whole(int(number.to_integral_value(ROUND_CEILING)), _BINARY)
    for small, divisor in _SMALL:
        scaled = number * divisor
        if scaled == scaled.to_integral_value():
            return _whole(int(scaled), _DECIMAL) if divisor == 1 else f"{int(scaled)}{small}"
    return _whole(int(number.to_integral_value(ROUND_CEILING)), _DECIMAL)


def quantity_value(value: int | str) -> Decimal:
    """Return what a quantity amounts to."""
    suffix = str(value).lstrip("0123456789.")
    return Decimal(str(value).removesuffix(suffix)) * _factor(suffix)


def quantity(num_bytes: int) -> str:
    """Return a size in bytes as a quantity."""
    return _whole(num_bytes, _BINARY)


def _factor(suffix: str) -> Decimal:
    if suffix in dict(_SMALL):
        return 1 / Decimal(dict(_SMALL)[suffix])
    return Decimal(dict((*_BINARY, *_DECIMAL))[suffix])


def _whole(number: int, units: tuple[tuple[str, int], ...]) -> str:
    for unit, factor in units:
        if number and number % factor == 0:
            return f"{number // factor}{unit}"
    return str(number)
