"""The lengths of conversations → the number of packs they fill, without loading anything.

TRL packs best-fit-decreasing in groups of 1,000 rows (`trl/data_utils.py`, `_pack_bfd`). This applies the same rule to
lengths, so that `curate plan` can count the steps of an epoch. Training uses TRL's packing.
"""

from __future__ import annotations

from collections.abc import Iterable

GROUP = 1_000
"""Rows that TRL packs together: the default batch size of `datasets.map`."""


def count_packs(lengths: Iterable[int], max_length: int) -> int:
    """The number of packs of at most `max_length` tokens that rows of these lengths fill, in this order.

    >>> count_packs([5, 2, 3, 1], 5)
    3
    """
    rows = [length for length in lengths if length]
    return sum(_packs_of_group(rows[start : start + GROUP], max_length) for start in range(0, len(rows), GROUP))


def _packs_of_group(lengths: list[int], max_length: int) -> int:
    """Add each row, longest first, to the open pack with the least sufficient space; each step depends on the last.

    Bit n of `open_spaces` is set if a pack with n tokens of space is open; `packs_with[n]` is the number of such packs.
    """
    open_spaces, packs, packs_with = 0, 0, [0] * (max_length + 1)
    for length in sorted((min(length, max_length) for length in lengths), reverse=True):
        fitting = open_spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            packs_with[space] -= 1
            open_spaces ^= (not packs_with[space]) << space
        else:
            space, packs = max_length, packs + 1
        left = space - length
        packs_with[left] += 1
        open_spaces |= (left > 0) << left
    return packs
