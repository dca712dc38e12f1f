"""What rows cost on disk: the estimate against real files."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.spool.pages import PAGE, row_bytes
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import changes, make_row

# The first pages of the tables, and of the list of tables; pages that point to others.
FIXED = 6 * PAGE
SIZES = [
    *(300, 500, 650, 1000, 2000, 3000, 5000, 7000, 8000, 9000, 12_000, 16_000),
    *(16_320, 16_340, 17_000, 20_000, 33_000, 50_000, 90_000, 400_000),
]
MIXTURES = [(300, 9000), (400, 12_000), (500, 900, 40_000), range(200, 16_000), range(200, 50_000)]


def used(directory: Path, sizes: Sequence[int]) -> int:
    """Bytes of the pages in use after rows with bodies of these sizes were added."""
    file = SpoolFile(str(directory), 256 * 2**20, sync_full=False)
    file.open()
    before = file.used
    body = random.Random(0).randbytes(max(sizes))
    rows = [make_row(seq, body[:size], size=row_bytes(size)) for seq, size in enumerate(sizes, 1)]
    for part in changes(*rows).split(file.transaction_bytes, file.transaction_rows):
        file.apply(part)
    file.close()
    file.unlock()
    assert before <= FIXED
    return file.used


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_one_size(tmp_path: Path, size: int) -> None:
    """Together they cost at least what the file has in use, and not much more."""
    count = max(50, 2_000_000 // size)
    cost, in_use = count * row_bytes(size), used(tmp_path, [size] * count)
    assert in_use - FIXED <= cost <= 1.16 * in_use


@pytest.mark.parametrize("sizes", MIXTURES)
def test_rows_of_several_sizes(tmp_path: Path, sizes: Sequence[int]) -> None:
    """As well; a page is left with less space than the next row needs."""
    drawn = random.Random(0).choices(sizes, k=1000)
    cost, in_use = sum(map(row_bytes, drawn)), used(tmp_path, drawn)
    assert in_use - FIXED <= cost <= 1.2 * in_use


def test_a_body_just_over_half_a_page_takes_a_page() -> None:
    """As no second one fits; two smaller ones share a page."""
    assert row_bytes(9000) > PAGE
    assert row_bytes(8000) < 0.54 * PAGE
