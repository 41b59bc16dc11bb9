import numpy as np
import numpy.typing as npt
import pytest

from graft_runtime.sampling.philox import philox4x32, uniforms


def words(*values: int) -> tuple[npt.NDArray[np.uint64], ...]:
    return tuple(np.array([value], dtype=np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_the_published_generator(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    made = philox4x32(words(*counter), words(*key))
    assert [int(word[0]) for word in made] == list(expected)


def test_numbers_are_uniform_and_below_one() -> None:
    seeds = np.arange(20_000, dtype=np.uint64)
    made = uniforms(seeds, np.full(20_000, 5))
    assert made.min() >= 0
    assert made.max() < 1
    counts, _ = np.histogram(made, bins=20, range=(0, 1))
    # Chi-square with 19 degrees of freedom exceeds 43.8 once in a thousand; the input is fixed.
    assert (((counts - 1000) ** 2) / 1000).sum() < 43.8


def test_a_number_depends_on_seed_position_and_sample_only() -> None:
    seeds = np.array([1, 2, 2**63 + 5], dtype=np.uint64)
    positions = np.array([0, 7, 2**40], dtype=np.int64)
    together = uniforms(seeds, positions)
    for row in range(3):
        alone = uniforms(seeds[row : row + 1], positions[row : row + 1])
        assert alone[0] == together[row]
    assert uniforms(seeds, positions + 1).tolist() != together.tolist()
    assert uniforms(seeds, positions, sample_index=1).tolist() != together.tolist()
    # High halves count too.
    low, high = np.array([5], dtype=np.uint64), np.array([2**32 + 5], dtype=np.uint64)
    assert uniforms(low, positions[:1])[0] != uniforms(high, positions[:1])[0]
