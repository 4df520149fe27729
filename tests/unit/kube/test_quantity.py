from fractions import Fraction

import pytest

from hpk import errors
from hpk.kube import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0", 0),
        ("100m", Fraction(1, 10)),
        ("1.5", Fraction(3, 2)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("+2", 2),
        ("-2k", -2000),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("1Ei", 2**60),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e-3", Fraction(1, 1000)),
        ("12e6", 12 * 10**6),
        ("250u", Fraction(250, 10**6)),
        ("1n", Fraction(1, 10**9)),
        ("0.1n", Fraction(1, 10**9)),  # finer than a nano: up
        (2, 2),
        (0.5, Fraction(1, 2)),
    ],
)
def test_values(text: str, value: Fraction) -> None:
    assert quantity.parse(text) == value


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1GB", "1mi", "1.2.3", "--1", "1e", "1e999999999", "0x10", True, "1K", "NaN", "\uff11"])
def test_not_a_quantity(text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="is not a quantity"):
        quantity.parse(text)


def test_rounding_is_up() -> None:
    assert quantity.ceil("1001m") == 2
    assert quantity.ceil("1000m") == 1
    assert quantity.milli("0.0001") == 1
    assert quantity.mebibytes("1Mi") == 1
    assert quantity.mebibytes("1048577") == 2
    assert quantity.mebibytes("100M") == 96
