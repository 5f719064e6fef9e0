"""The checksums of rows: their values are part of the format, and disk damage changes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import plain_folded
from trajmatch.storage.checksum import CHECKSUMS, GROUP, LINE, folded, xxh3

# Two groups and a piece of a third, and bytes that fill no line.
SIZE = LINE * (2 * GROUP + 3) + 1001
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
SUMS = {checksum: checksum(CONTENT.data) for checksum in (folded, xxh3)}


def assert_noticed(altered):
    assert all(checksum(altered.data) != before for checksum, before in SUMS.items())


@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 1000, LINE - 1, LINE, LINE + 1, 3 * LINE, GROUP * LINE, SIZE]
)
def test_it_is_what_its_plain_twin_computes(size):
    assert folded(CONTENT.data[:size]) == plain_folded(CONTENT.tobytes()[:size], LINE, GROUP)


def test_its_values_are_those_that_files_carry():
    counted = (np.arange(SIZE) % 251).astype(np.uint8)
    short = memoryview(b"123456789")
    assert {name: found(short) for name, found in CHECKSUMS.items()} == {
        "crc32": 0xCBF43926,  # the published check value
        "folded": 0xCBF43926,
        "xxh3": 0x72DCB18B67A17DFF,
    }
    assert xxh3(memoryview(b"")) == 0x2D06800538D394C2  # the published check value
    assert xxh3(counted.data) == 0xA5D2817A1D82B815
    assert folded(counted.data) == 0x583D14D4
    assert folded(counted.data[: LINE * 39 + 413]) == 0xDCCE6C64


@given(offset=st.integers(0, 7), size=st.integers(0, 5 * LINE))
@settings(deadline=None, max_examples=20)
def test_where_the_bytes_lie_in_memory_is_all_the_same(offset, size):
    block = CONTENT[offset : offset + size]
    for checksum in SUMS:
        assert checksum(block.data) == checksum(block.copy().data)


@given(position=st.integers(0, SIZE - 1), bit=st.integers(0, 7))
@settings(deadline=None)
def test_any_flipped_bit_is_seen(position, bit):
    altered = CONTENT.copy()
    altered[position] ^= 1 << bit
    assert_noticed(altered)


@given(position=st.integers(0, SIZE - 5), pattern=st.integers(1, 2**32 - 1))
@settings(deadline=None)
def test_any_damage_within_four_bytes_is_seen(position, pattern):
    altered = CONTENT.copy()
    altered[position : position + 4] ^= np.frombuffer(pattern.to_bytes(4, "little"), np.uint8)
    assert_noticed(altered)


BLOCK = st.sampled_from([64, 512, 4096, 2**16])


@given(data=st.data(), size=BLOCK, begin=st.integers(0, 4095))
@settings(deadline=None)
def test_blocks_that_changed_places_are_seen(data, size, begin):
    """Wherever the row begins within its first page."""
    places = st.integers(0, (SIZE - begin) // size - 1)
    one, other = (
        slice(begin + p * size, begin + (p + 1) * size)
        for p in data.draw(st.tuples(places, places).filter(lambda pair: pair[0] != pair[1]))
    )
    altered = CONTENT.copy()
    altered[one], altered[other] = CONTENT[other], CONTENT[one]
    assert_noticed(altered)


def test_blocks_of_one_column_lie_in_different_groups():
    """Of every size: the nearest two that are laid upon each other."""
    for size in (64, 512, 4096):
        nearest = next(m for m in range(1, LINE + 1) if m * size % LINE == 0) * size
        assert nearest >= GROUP * LINE


@pytest.mark.parametrize("value", [0, 255])
@given(start=st.integers(0, SIZE // 512 - 1), length=st.integers(1, SIZE // 512))
@settings(deadline=None, max_examples=50)
def test_sectors_that_were_blanked_are_seen(value, start, length):
    """Also where all was one value before: what fell together then still does not cancel."""
    for content in (CONTENT, np.full_like(CONTENT, 7)):
        altered = content.copy()
        altered[start * 512 : (start + length) * 512] = value
        for checksum in SUMS:
            assert checksum(altered.data) != checksum(content.data)


def test_a_repeated_or_dropped_part_is_seen():
    for length in (64, 512, 4096, LINE, GROUP * LINE):
        for start in (0, 512, LINE, 3 * LINE):
            altered = np.concatenate([CONTENT[:start], CONTENT[start + length :]])
            assert_noticed(altered)
            altered = np.concatenate([altered, CONTENT[start : start + length]])
            assert_noticed(altered)
