import pytest

from capgap.law.law_record import Interval
from capgap.law.number_text import about, bracketed, listed, span


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (412345.6, "412k"),
        (-11498000, "-11.5M"),
        (999.4, "999"),
        (999999, "1M"),
        (0, "0"),
        (2.5e9, "2.5B"),
    ],
)
def test_about(size, text):
    assert about(size) == text


def test_bracketed():
    assert bracketed(Interval(value=0.291, low=0.02, high=0.5551)) == "0.29 [0.02, 0.56]"
    assert bracketed(Interval(value=1, low=None, high=None)) == "1.00 [no limit, no limit]"


def test_span_and_listed():
    assert span(Interval(value=2e5, low=1e5, high=None)) == "at least 100k"
    assert span(Interval(value=2e5, low=None, high=3e5)) == "at most 300k"
    assert span(Interval(value=2e5, low=None, high=None)) == "without limits"
    assert span(Interval(value=2e5, low=1e5, high=3e5)) == "100k to 300k"
    assert [listed("abc"), listed("ab"), listed("a"), listed("")] == [
        "a, b and c",
        "a and b",
        "a",
        "",
    ]
