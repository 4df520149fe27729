"""Kubernetes quantities (``100m``, ``1.5Gi``, ``2e3``), exactly: values are fractions, and rounding is always up, as in apimachinery.

Source: k8s.io/apimachinery/pkg/api/resource.Quantity.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from hpk import errors

_PATTERN = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]+)|([KMGTPE]i|[numkMGTPE])?)")
_SUFFIXES: dict[str, Fraction] = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "": Fraction(1),
    **{suffix: Fraction(10 ** (3 * power)) for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Fraction(1024**power) for power, suffix in enumerate("KMGTPE", start=1)},
}
_NANO = 10**9
#: Exponents beyond this mean a number that no machine has; refusing them keeps a hostile ``1e999999999`` cheap.
_MAX_EXPONENT = 40


def parse(text: str | int | float) -> Fraction:
    """Return the value of a quantity. A number, as YAML may give it, is taken as written. Raises InvalidInput.

    What is finer than a billionth is rounded up (away from zero), as the API server does.
    """
    written = str(text).strip() if not isinstance(text, bool) else "bool"
    match = _PATTERN.fullmatch(written)
    if match is None:
        raise errors.InvalidInput(f"{text!r} is not a quantity; write for example 2, 500m, 1.5Gi or 1e3")
    sign, digits, exponent, suffix = match.groups()
    if exponent:
        power = int(exponent[1:])
        if abs(power) > _MAX_EXPONENT:
            raise errors.InvalidInput(f"{text!r} is not a quantity: the exponent is too large")
        scale = Fraction(10) ** power
    else:
        scale = _SUFFIXES[suffix or ""]
    value = Fraction(digits) * scale
    value = Fraction(math.ceil(value * _NANO), _NANO)
    return -value if sign == "-" else value


def ceil(text: str | int | float | Fraction) -> int:
    """The value in whole units, rounded up: bytes, CPUs, devices."""
    return math.ceil(text if isinstance(text, Fraction) else parse(text))


def milli(text: str | int | float | Fraction) -> int:
    """The value in thousandths, rounded up: millicores."""
    return math.ceil((text if isinstance(text, Fraction) else parse(text)) * 1000)


def mebibytes(text: str | int | float | Fraction) -> int:
    """The value in MiB (Slurm's "M"), rounded up."""
    return math.ceil((text if isinstance(text, Fraction) else parse(text)) / 1024**2)
