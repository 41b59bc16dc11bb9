"""Weights between file dtypes and float32, without torch; the converter works on these arrays."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
ServingDtype = Literal["float32", "bfloat16", "float16"]

FILE_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Dtypes of weights that are read, and what their bytes are to numpy."""

SERVING_DTYPES: dict[ServingDtype, tuple[str, str]] = {
    "float32": ("F32", "<f4"),
    "float16": ("F16", "<f2"),
    "bfloat16": ("BF16", "<u2"),
}
"""Name in a file's header, and numpy's view of the bytes (which has no bfloat16)."""

_BFLOAT16_EXPONENT = 0x7F80
_BFLOAT16_MAGNITUDE = 0x7FFF


def to_float32(raw: bytes, file_dtype: str) -> Float32:
    """Read a tensor's bytes as float32, flat."""
    stored = np.frombuffer(raw, dtype=FILE_DTYPES[file_dtype])
    if file_dtype == "BF16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype(np.float32)


def cast(values: Float32, dtype: ServingDtype) -> NDArray[np.generic]:
    """Round finite float32 values to the serving dtype, to nearest even as torch does."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values).view("<u4")
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded: NDArray[np.generic] = ((bits + half) >> np.uint32(16)).astype("<u2")
        return rounded
    with np.errstate(over="ignore"):
        return values.astype(SERVING_DTYPES[dtype][1])


def is_finite(stored: NDArray[np.generic], dtype: ServingDtype) -> bool:
    """Tell whether all values of a cast array are numbers."""
    if dtype == "bfloat16":
        exponents = stored.view("<u2") & np.uint16(_BFLOAT16_EXPONENT)
        return not bool((exponents == _BFLOAT16_EXPONENT).any())
    return bool(np.isfinite(stored).all())


def is_zero(stored: NDArray[np.generic], dtype: ServingDtype) -> bool:
    """Tell whether all values of a cast array are zero, of either sign."""
    if dtype == "bfloat16":
        return not bool((stored.view("<u2") & np.uint16(_BFLOAT16_MAGNITUDE)).any())
    return not bool(stored.any())
