"""Image files of 8 or 16 bit, grey or colour, with or without alpha, as tensors, and tensors as PNG."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_data.image_io import EXTENSIONS, ImageHeader, read_header

DTYPES = {8: np.uint8, 16: np.uint16}


@dataclass(frozen=True)
class AnyImage:
    """``rgb`` (1, 3, H, W) and ``alpha`` (1, 1, H, W) or None, float32 in [0, 1]; ``bits`` per channel of the file."""

    rgb: Tensor
    alpha: Tensor | None
    bits: int


def list_inputs(given: Path) -> list[Path]:
    """The file itself, or the files of a folder that are images by their names, sorted; hidden ones are passed over.

    Raises FileNotFoundError where there are none.
    """
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise FileNotFoundError(f'{given}: no such file or folder')
    paths = sorted(path for path in given.iterdir() if path.is_file() and not path.name.startswith('.'))
    images = [path for path in paths if path.suffix.lower() in EXTENSIONS]
    if not images:
        raise FileNotFoundError(f'{given}: holds no images, expected {", ".join(EXTENSIONS)}')
    return images


def read_any(path: Path) -> AnyImage:
    """A PNG, JPEG or BMP file, turned upright as its EXIF says; a grey one is repeated to three channels.

    Raises OSError, or ValueError, naming the file, for one that is damaged, truncated, or neither grey nor RGB.
    """
    data, name = path.read_bytes(), str(path)
    header = read_header(data, name)
    if (header.channels == 4 and not header.has_alpha) or header.channels not in (1, 2, 3, 4):
        raise ValueError(f'{name}: image with {header.channels} channels (CMYK?), expected grey or RGB: convert it')
    with_alpha = header.has_alpha or header.channels == 2
    # the second of them turns the picture as EXIF says, the first knows alpha
    how = cv2.IMREAD_UNCHANGED if with_alpha else cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise ValueError(f'{name}: cannot be decoded: {error}') from error
    _check_decoded(image, header, name)
    bits = 16 if image.dtype == np.uint16 else 8
    planes = torch.from_numpy(np.atleast_3d(image).astype(np.float32) / (2**bits - 1)).permute(2, 0, 1)[None]
    alpha = planes[:, -1:].contiguous() if planes.shape[1] in (2, 4) else None
    colour = planes[:, :-1] if alpha is not None else planes
    rgb = colour.flip(1) if colour.shape[1] == 3 else colour.repeat(1, 3, 1, 1)
    return AnyImage(rgb.contiguous(), alpha, bits)


def upscale_alpha(alpha: Tensor, scale: int) -> Tensor:
    """Bicubic interpolation, clamped to [0, 1]: (1, 1, H, W) to (1, 1, scale * H, scale * W)."""
    return F.interpolate(alpha, scale_factor=scale, mode='bicubic').clamp(0, 1)


def encode_any(image: AnyImage) -> bytes:
    """PNG of ``image`` with its alpha and bits; values beyond [0, 1] are clamped, halves rounded to even.

    Raises ValueError for values that are no numbers.
    """
    planes = [image.rgb.flip(1)] + ([image.alpha] if image.alpha is not None else [])
    pixels = torch.cat(planes, dim=1)[0].permute(1, 2, 0)
    if not pixels.isfinite().all():
        raise ValueError('the network gave values that are no finite numbers (with fp16 too large ones; try fp32)')
    levels = pixels.clamp(0, 1).mul(2**image.bits - 1).round()
    done, data = cv2.imencode('.png', np.ascontiguousarray(levels.numpy().astype(DTYPES[image.bits])))
    if not done:
        raise ValueError(f'image {tuple(image.rgb.shape)} cannot be encoded as PNG')
    return data.tobytes()


def _check_decoded(image: np.ndarray | None, header: ImageHeader, name: str) -> None:
    if image is None:
        raise ValueError(f'{name}: cannot be decoded: replace it')
    # sorted: EXIF may have turned it
    if sorted(image.shape[:2]) != sorted((header.height, header.width)) or image.dtype not in DTYPES.values():
        says = f'{header.height}x{header.width}'
        raise ValueError(f'{name}: decoded to {image.dtype} {image.shape}, its header says {says}: replace it')
