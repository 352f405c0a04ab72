"""Images as arrays: reading, resizing, and the distortions of the shift suite. Values lie in [0, 1], shape [C, H, W]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interfuse.core.errors import InterfuseError

if TYPE_CHECKING:
    import torch

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


@dataclass(frozen=True)
class Normalisation:
    """What a model's ``preprocessor_config.json`` does to pixels in [0, 1]: ``(scale x + shift - mean) / std``, per channel.

    Attributes:
        mean, std: one number, or one per channel. flip: the model reads the channels in the opposite order.
    """

    scale: float = 1.0
    shift: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def read(cls, processor: Mapping[str, Any], where: str = "") -> Normalisation:
        """From ``image_mean``, ``image_std``, ``do_normalize``, ``do_rescale``, ``rescale_factor`` and, where a family has them,
        ``rescale_offset``, ``include_top`` and ``do_flip_channel_order``; what is not written is as the family's own class has it.
        No processor leaves pixels as they are.

        Raises:
            InterfuseError: ``input.format`` when ``do_normalize`` is set without mean and deviation, or a deviation is not positive.
        """
        if not processor:
            return cls()
        family = _family(processor)

        def said(name: str, default: Any) -> Any:
            return processor[name] if name in processor else getattr(family, name, default)

        rescaled, wanted = said("do_rescale", True), bool(said("do_normalize", False))
        scale = 255 * float(said("rescale_factor", None) or 1 / 255) if rescaled else 255.0
        mean, std = _numbers(said("image_mean", None)), _numbers(said("image_std", None))
        twice = bool(said("include_top", False))  # a second division, for classification
        if (wanted and not mean) or ((wanted or twice) and (not std or min(std) <= 0)):
            raise InterfuseError("input.format", "the processor normalises, but has no image_mean and positive image_std", where=where)  # fmt: skip
        power = int(wanted) + int(twice)
        return cls(
            scale=1.0 if abs(scale - 1) < 1e-6 else scale,
            shift=-1.0 if rescaled and said("rescale_offset", False) else 0.0,
            mean=mean if wanted else (0.0,),
            std=tuple(v**power for v in std) if power else (1.0,),
            flip=bool(said("do_flip_channel_order", False)),
        )

    @property
    def nothing(self) -> bool:
        """Whether pixels stay as they are."""
        return self == Normalisation(mean=(0.0,) * len(self.mean), std=(1.0,) * len(self.std))

    def __call__(self, pixels: torch.Tensor, where: str = "") -> torch.Tensor:
        """Pixels [B, C, H, W] in [0, 1] as the model reads them; gradients pass.

        Raises:
            InterfuseError: ``input.shape`` when there are neither one nor C means.
        """
        for values in (self.mean, self.std):
            if len(values) not in (1, pixels.shape[1]):
                raise InterfuseError("input.shape", f"the processor has {len(values)} means or deviations, the model reads {pixels.shape[1]} channels",
                                     where=where)  # fmt: skip
        pixels = pixels.flip(1) if self.flip else pixels
        mean, std = (pixels.new_tensor(values).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        scaled = pixels if self.scale == 1.0 else pixels * self.scale
        return (scaled + (self.shift - mean)) / std


def _family(processor: Mapping[str, Any]) -> Any:
    """The class of ``transformers`` that a processor names, or None."""
    import transformers

    name = processor.get("image_processor_type") or str(processor.get("feature_extractor_type", "")).replace("FeatureExtractor", "ImageProcessor")  # fmt: skip
    return getattr(transformers, f"{str(name).removesuffix('Fast')}Pil", None)


def _numbers(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)


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


def _ink_box(array: Array, amount: float, rng: np.random.Generator) -> Array:
    """As in USPS: the box of the ink (values above 0.2) fills the image but for a margin of one pixel; blurred, thresholded softly."""
    from scipy.ndimage import gaussian_filter, zoom

    ink = array.max(axis=0) > 0.2
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    height, width = array.shape[1] - 2, array.shape[2] - 2
    if not len(rows) or height < 1 or width < 1:
        return array
    box = array[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = (1, height / box.shape[1], width / box.shape[2])
    filled = np.pad(zoom(box, factor, order=1, grid_mode=True, mode="grid-constant"), ((0, 0), (1, 1), (1, 1)))
    blurred = gaussian_filter(filled, (0.0, amount, amount))
    return np.asarray(1 / (1 + np.exp(-10 * (blurred - 0.4))), dtype=np.float32)


#: name -> function of (image, amount, generator): degrees, pixels, standard deviation, sigma in pixels, factor, -, pixels, pixels, sigma
DISTORTIONS: dict[str, Callable[[Array, float, np.random.Generator], Array]] = {
    "rotate": _rotate, "shift": _shift, "noise": _noise, "blur": _blur, "contrast": _contrast, "invert": _invert,
    "thicken": _thicken, "thin": _thin, "ink-box": _ink_box,
}  # fmt: skip


def distort(array: Array, steps: tuple[tuple[str, float], ...], rng: np.random.Generator) -> Array:
    """Applies distortion steps in order and keeps values in [0, 1]."""
    for kind, amount in steps:
        array = DISTORTIONS[kind](array, amount, rng)
    return np.clip(array, 0.0, 1.0).astype(np.float32) if steps else array
