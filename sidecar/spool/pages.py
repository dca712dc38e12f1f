"""What a row costs on disk, from the rules of SQLite's file format: sqlite.org/fileformat2.html."""

PAGE = 16 * 1024
# No row takes more than this many times the bytes that its span takes in memory.
MAX_ROW_RATIO = 2
# A leaf page has a header of 8 bytes. A record that does not fit into one leaves between `_MIN` and
# `_MAX` bytes there; the rest fills overflow pages, each with the number of the next in 4 bytes.
_LEAF, _OVERFLOW = PAGE - 8, PAGE - 4
_MAX, _MIN = PAGE - 35, (PAGE - 12) * 32 // 255 - 23
# In a record of `bodies` besides the body: its header and `born`. In a page besides the record: its
# pointer, its size, its row number, and the number of its first overflow page.
_RECORD, _CELL = 15, 2 + 3 + 5 + 4
# A row of `writes`, with its share of the space that a page has left.
_WRITES_ROW = 44


def row_bytes(body: int) -> int:
    """Bytes that a row with a body of this size takes on disk: a close upper bound.

    Rows are appended, so a page is left with less free space than the next row needs: with rows of
    one size, with what remains after as many as fit; with a mixture, a little more.
    """
    local, pages = body + _RECORD, 0
    if local > _MAX:
        rest = (local - _MIN) % _OVERFLOW
        left = _MIN + rest if _MIN + rest <= _MAX else _MIN
        pages = -(-(local - left) // _OVERFLOW)
        local = left
    leaf = PAGE // (_LEAF // (local + _CELL))
    return pages * PAGE + leaf + leaf // 16 + _WRITES_ROW
