"""Random numbers by counter: the same for a request whatever else is in the batch.

Philox 4x32 with 10 rounds, vectorised over rows. Knows no tensor.

Shape legend: S rows.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""32-bit words kept in 64 bits, so that products do not overflow."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: tuple[Words, ...], key: tuple[Words, ...]) -> tuple[Words, ...]:
    """Scramble four counter words under two key words; all arrays of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(
    seed_S: npt.NDArray[np.uint64],
    position_S: npt.NDArray[np.int64],
    sample_index: npt.NDArray[np.int64] | int = 0,
) -> npt.NDArray[np.float64]:
    """Return one number in ``[0, 1)`` per row, a function of its arguments alone.

    Args:
        seed_S: Seed of each row's request.
        position_S: Index of the token in its request's output.
        sample_index: Which of several answers to one request; one for all rows, or one per row.
    """
    positions = position_S.astype(np.uint64)
    index = np.broadcast_to(np.asarray(sample_index, dtype=np.uint64), positions.shape)
    counter = (positions & _LOW, positions >> _32, index, np.zeros_like(positions))
    first, second, _, _ = philox4x32(counter, (seed_S & _LOW, seed_S >> _32))
    # 53 bits: every value is a float64, and 1.0 cannot appear.
    bits = (first << np.uint64(21)) | (second >> np.uint64(11))
    scaled: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return scaled


def _multiply(multiplier: np.uint64, words: Words) -> tuple[Words, Words]:
    product = words * multiplier
    return product >> _32, product & _LOW
