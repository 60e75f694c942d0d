"""Strict reading of 8-bit images: what OpenCV would mend, skip or convert in silence is an error that names the file.

Header and completeness are read from the bytes themselves, without decoding: OpenCV turns a truncated JPEG or PNG into
a picture with a grey end, and says nothing.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mtkd_data.flat_png import encode_flat_png

Grey = Literal['error', 'convert', 'keep']

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp')
HEEDING_EXIF = cv2.IMREAD_COLOR
LONGEST_KEY = 500  # bytes; LMDB takes 511, a sub-image adds `_s001`
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # colour type: grey, RGB, palette, grey + alpha, RGB + alpha
JPEG_MARKER = re.compile(rb'\xff+([^\x00\x01\xff\xd0-\xd7])')  # not: stuffing, TEM, fill bytes, restarts
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says of itself; `has_alpha` also stands for a transparent palette entry or colour."""

    height: int
    width: int
    channels: int
    bit_depth: int
    has_alpha: bool = False


def list_images(folder: Path) -> list[Path]:
    """The image files of `folder`, sorted by name; hidden files (`.name`) are passed over.

    Raises FileNotFoundError for a missing or empty folder, ValueError for anything in it that is no image by its name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{folder}: expected a folder of images, found ' + ('a file' if folder.exists() else 'nothing')
        )
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    strangers = [path for path in paths if path.is_dir() or path.suffix.lower() not in EXTENSIONS]
    if strangers:
        what = 'a folder' if strangers[0].is_dir() else 'not an image by its name'
        more = f' (and {len(strangers) - 1} more like it)' if len(strangers) > 1 else ''
        raise ValueError(f'{strangers[0]}: {what}{more}; expected only {", ".join(EXTENSIONS)}: move it elsewhere')
    if not paths:
        raise FileNotFoundError(f'{folder}: holds no images, expected {", ".join(EXTENSIONS)}')
    return paths


def key_images(paths: list[Path]) -> dict[str, Path]:
    """Key (file name without extension) of each path.

    Raises ValueError where BasicSR could not use the key (it cuts the lines of `meta_info.txt` at the first dot, and
    encodes keys as ASCII), and where two files share one.
    """
    keyed: dict[str, Path] = {}
    for path in paths:
        key = path.stem
        if '.' in key:
            remedy = f'rename it, for example to {key.replace(".", "_")}{path.suffix}'
            raise ValueError(f'{path}: further dots in the name, BasicSR cuts keys at the first one: {remedy}')
        if not key.isascii() or not key.isprintable() or len(key) > LONGEST_KEY:
            raise ValueError(f'{path}: expected a name of at most {LONGEST_KEY} printable ASCII characters: rename it')
        if key in keyed:
            other = path.name if path.parent == keyed[key].parent else path
            raise ValueError(f'{keyed[key]} and {other}: two files with the key {key!r}: rename or remove one')
        keyed[key] = path
    return keyed


def read_header(data: bytes | memoryview, name: str) -> ImageHeader:
    """Header of a whole PNG, JPEG or BMP file; `name` is what errors call it. A PNG is not copied.

    Raises ValueError for other content, and for a file that is truncated or (PNG) fails its checksums.
    """
    if data[: len(PNG_SIGNATURE)] == PNG_SIGNATURE:
        return _png_header(data, name)
    data = bytes(data)
    if data.startswith(b'\xff\xd8\xff'):
        return _jpeg_header(data, name)
    if data.startswith(b'BM'):
        return _bmp_header(data, name)
    what = 'empty file' if not data else 'not an image'
    raise ValueError(f'{name}: {what}; expected the content of a PNG, JPEG or BMP file')


def check_header(header: ImageHeader, name: str, grey: Grey = 'error') -> None:
    """Raise ValueError, naming the file, for what is not 8-bit colour (or grey, where `grey` allows it)."""
    if header.height < 1 or header.width < 1:
        raise ValueError(f'{name}: damaged image, it says {header.height}x{header.width} pixels: replace it')
    if header.bit_depth > 8:
        raise ValueError(f'{name}: {header.bit_depth}-bit image, expected 8 bits per channel: convert it to 8-bit RGB')
    if header.has_alpha or header.channels in (2, 4):
        raise ValueError(f'{name}: image with {_describe_channels(header)}, expected 3 channels: convert it to RGB')
    if header.channels == 1 and grey == 'error':
        raise ValueError(f"{name}: grey image, expected 3 channels: remove it, or repeat the channel (grey 'convert')")
    if header.channels not in (1, 3):
        raise ValueError(f'{name}: image with {header.channels} channels, expected 3: convert it to RGB')


def decode_by_opencv(data: bytes | memoryview, name: str, flags: int) -> np.ndarray:
    """What `cv2.imdecode` makes of a file's content. Raises ValueError, naming the file, where it makes nothing."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f'{name}: cannot be decoded: {error}') from error
    if image is None:
        raise ValueError(f'{name}: cannot be decoded: replace it')
    return image


def decode_image(data: bytes, name: str, grey: Grey = 'error') -> np.ndarray:
    """Decode a PNG, JPEG or BMP file to uint8 (H, W, 3), channels BGR as OpenCV and BasicSR hold them.

    A grey image is refused (`error`), repeated to three channels (`convert`) or returned as (H, W) (`keep`).
    Raises ValueError, naming the file, for everything `read_header` and `check_header` refuse.
    """
    header = read_header(data, name)
    check_header(header, name, grey)
    # not IMREAD_COLOR: it would turn the picture as EXIF says, which BasicSR's own preparation scripts do not
    image = decode_by_opencv(data, name, cv2.IMREAD_UNCHANGED)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    expected = (header.height, header.width) + ((3,) if header.channels == 3 else ())
    if image.shape != expected or image.dtype != np.uint8:
        raise ValueError(
            f'{name}: decoded to {image.dtype} {image.shape}, its header says uint8 {expected}: replace it'
        )
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 and grey == 'convert' else image


def is_turned(data: bytes) -> bool:
    """Whether BasicSR's datasets, which heed EXIF, see another image than :func:`decode_image` gives."""
    if b'Exif\0\0' not in data and b'eXIf' not in data:
        return False
    encoded = np.frombuffer(data, np.uint8)
    heeded, plain = (cv2.imdecode(encoded, how) for how in (HEEDING_EXIF, HEEDING_EXIF | cv2.IMREAD_IGNORE_ORIENTATION))
    return heeded is not None and not np.array_equal(heeded, plain)


def read_image(path: Path, grey: Grey = 'error') -> np.ndarray:
    """`decode_image` of a file."""
    return decode_image(path.read_bytes(), str(path), grey)


def encode_png(image: np.ndarray, compression_level: int) -> bytes:
    """PNG bytes of a uint8 image, BGR (H, W, 3) or grey (H, W); colour at level 0 as in-place PNG (see flat_png)."""
    if compression_level == 0 and image.ndim == 3:
        return encode_flat_png(image[..., ::-1])
    done, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, compression_level])
    if not done:
        raise ValueError(f'image {image.dtype} {image.shape} cannot be encoded as PNG')
    return data.tobytes()


def _describe_channels(header: ImageHeader) -> str:
    return 'an alpha channel' if header.has_alpha else f'{header.channels} channels'


def _truncated(name: str) -> ValueError:
    return ValueError(f'{name}: truncated image, its end is missing: replace it by a whole copy')


def _damaged(name: str, what: str) -> ValueError:
    return ValueError(f'{name}: damaged image ({what}): replace it by a sound copy')


def _png_header(data: bytes | memoryview, name: str) -> ImageHeader:
    """Walk over all chunks up to IEND, checking each checksum."""
    view, position, seen = memoryview(data), len(PNG_SIGNATURE), set()
    while b'IEND' not in seen:
        if position + 12 > len(data):
            raise _truncated(name)
        length, kind = struct.unpack_from('>I4s', data, position)
        end = position + 12 + length
        if end > len(data):
            raise _truncated(name)
        if zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from('>I', data, end - 4)[0]:
            raise _damaged(name, 'a PNG checksum does not match')
        seen.add(kind)
        position = end
    if not {b'IHDR', b'IDAT'} <= seen or data[12:16] != b'IHDR':
        raise _damaged(name, 'a PNG without header or pixels')
    width, height, bit_depth, colour = struct.unpack_from('>IIBB', data, 16)
    if colour not in PNG_CHANNELS:
        raise _damaged(name, f'PNG colour type {colour}')
    channels = PNG_CHANNELS[colour]
    return ImageHeader(height, width, channels, bit_depth, channels in (2, 4) or b'tRNS' in seen)


def _jpeg_header(data: bytes, name: str) -> ImageHeader:
    """Walk over all segments up to the end-of-image marker; one inside an EXIF thumbnail does not count."""
    header, position = None, 2
    while True:
        marker = JPEG_MARKER.search(data, position)
        if marker is None:
            raise _truncated(name)
        kind, position = marker[1][0], marker.end()
        if kind == 0xD9:
            break
        fields = data[position : position + 8].ljust(8, b'\0')
        length, bit_depth, height, width, channels = struct.unpack('>HBHHB', fields)
        if kind in JPEG_FRAMES and header is None:
            header = ImageHeader(height, width, channels, bit_depth)
        position += length
    if header is None:
        raise _damaged(name, 'a JPEG without a frame')
    return header


def _bmp_header(data: bytes, name: str) -> ImageHeader:
    if len(data) < 54:
        raise _truncated(name)
    offset, _, width, height, _, bits, compression = struct.unpack_from('<IIiiHHI', data, 10)
    if bits != 24 or compression:
        raise ValueError(f'{name}: BMP of {bits} bits per pixel, expected plain 24: convert it to PNG')
    if offset + abs(height) * ((3 * width + 3) // 4 * 4) > len(data):
        raise _truncated(name)
    return ImageHeader(abs(height), width, 3, 8)
