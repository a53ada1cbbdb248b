"""Numbers of bytes, for people."""

import pytest

from igd.report.sizes import size_of


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1018 * 1024, "1018.0 KiB"),
    (2**20 - 1, "1.0 MiB"), (5 * 2**30, "5.0 GiB"), (2048 * 2**40, "2,048.0 TiB")])
def test_a_size_is_told_in_the_largest_unit_that_it_fills(count: int, text: str) -> None:
    assert size_of(count) == text
