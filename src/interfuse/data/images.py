"""Images as arrays: reading, resizing, and the distortions of the shift suite. Values lie in [0, 1], shape [C, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

Array = NDArray[np.float32]


def to_array(value: Any, shape: tuple[int, ...], scale: float, where: str) -> Array:
    """One image from numbers (flat or nested), a path, bytes, or a PIL image, as float32 [C, H, W].

    Raises:
        InterfuseError: ``input.format``, ``input.shape``, ``input.nan`` or ``input.limit``, naming the row.
    """
    from PIL import Image

    if isinstance(value, dict):  # the image type of `datasets`: {"bytes": ..., "path": ...}
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | Path | bytes):
        import io

        try:
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as picture:
                value = picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB")
        except Image.DecompressionBombError as error:
            raise InterfuseError("input.limit", "the picture has too many pixels", where=where) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise InterfuseError("input.format", "the picture cannot be read", where=where) from error
    if isinstance(value, Image.Image):
        value = np.asarray(value, dtype=np.float32) / 255.0
    array = np.asarray(value, dtype=np.float32) / np.float32(scale)
    if shape and array.ndim == 1:
        if array.size != int(np.prod(shape)):
            raise InterfuseError("input.shape", f"{array.size} numbers do not make an image of {shape}", where=where)
        array = array.reshape(shape)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.ndim != 3:
        raise InterfuseError("input.shape", f"an image has 2 or 3 axes, this one {array.ndim}", where=where,
                             fix="Give 'shape: [H, W]' for images stored as flat numbers.")  # fmt: skip
    if not np.isfinite(array).all():
        raise InterfuseError("input.nan", "an image holds NaN or infinity", where=where)
    return np.ascontiguousarray(array)


def fit(array: Array, channels: int, size: tuple[int, int] | None) -> Array:
    """The image with the number of channels and the size a model expects (bilinear; grey <-> colour by mean and copy)."""
    if array.shape[0] != channels:
        array = np.repeat(array.mean(axis=0, keepdims=True), channels, axis=0).astype(np.float32)
    if size is not None and array.shape[1:] != size:
        from scipy.ndimage import zoom

        factor = (1.0, size[0] / array.shape[1], size[1] / array.shape[2])
        array = zoom(array, factor, order=1, grid_mode=True, mode="grid-constant").astype(np.float32)
    return array


def _rotate(array: Array, amount: float, rng: np.random.Generator) -> Array:
    from scipy.ndimage import rotate

    return rotate(array, amount, axes=(2, 1), reshape=False, order=1)


def _shift(array: Array, amount: float, rng: np.random.Generator) -> Array:
    from scipy.ndimage import shift

    return shift(array, (0.0, amount, amount), order=1)


def _noise(array: Array, amount: float, rng: np.random.Generator) -> Array:
    return array + rng.normal(0.0, amount, array.shape).astype(np.float32)


def _blur(array: Array, amount: float, rng: np.random.Generator) -> Array:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(array, (0.0, amount, amount))


def _contrast(array: Array, amount: float, rng: np.random.Generator) -> Array:
    mean = array.mean()
    return (array - mean) * np.float32(amount) + mean


def _invert(array: Array, amount: float, rng: np.random.Generator) -> Array:
    return np.float32(1.0) - array


def _thicken(array: Array, amount: float, rng: np.random.Generator) -> Array:
    from scipy.ndimage import grey_dilation

    return grey_dilation(array, size=(1, int(amount), int(amount)))


def _thin(array: Array, amount: float, rng: np.random.Generator) -> Array:
    from scipy.ndimage import grey_erosion

    return grey_erosion(array, size=(1, int(amount), int(amount)))


#: name -> function of (image, amount, generator): degrees, pixels, standard deviation, sigma in pixels, factor, -, pixels, pixels
DISTORTIONS: dict[str, Callable[[Array, float, np.random.Generator], Array]] = {
    "rotate": _rotate, "shift": _shift, "noise": _noise, "blur": _blur, "contrast": _contrast, "invert": _invert,
    "thicken": _thicken, "thin": _thin,
}  # fmt: skip


def distort(array: Array, steps: tuple[tuple[str, float], ...], rng: np.random.Generator) -> Array:
    """Applies distortion steps in order and keeps values in [0, 1]."""
    for kind, amount in steps:
        array = DISTORTIONS[kind](array, amount, rng)
    return np.clip(array, 0.0, 1.0).astype(np.float32) if steps else array
