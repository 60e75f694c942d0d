"""In-place PNG: valid for every reader, and its pixels lie in the file as they are, so that a crop needs no decoding.

The image is one IDAT chunk whose deflate stream is made of stored blocks, one per row of filter type 0. So every row
lies at a constant distance from the one before, and a crop is a slice of the file's memory map:

    signature (8) | IHDR (25) | IDAT length and name (8) | zlib header (2) | H rows | Adler-32 (4) | CRC (4) | IEND (12)
    row: final? (1) | LEN (2) | complement of LEN (2) | filter type 0 (1) | pixels: RGB, 16-bit values big-endian
"""

import struct
import zlib

import cv2
import numpy as np

SIGNATURE = b'\x89PNG\r\n\x1a\n'
ZLIB_HEADER = b'\x78\x01'
LONGEST_BLOCK = 65535  # bytes: LEN has 16 bits
ROW_HEADER = 6
FIRST_PIXEL = 49
FIRST_ROW = FIRST_PIXEL - ROW_HEADER
RGB = 2  # colour type


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


TAIL = _chunk(b'IEND', b'')


def _row_header(row_bytes: int, final: bool) -> bytes:
    length = row_bytes + 1  # with the filter type
    return struct.pack('<BHHB', final, length, length ^ 0xFFFF, 0)


def _idat_bytes(height: int, row_bytes: int) -> int:
    return len(ZLIB_HEADER) + height * (ROW_HEADER + row_bytes) + 4


def _head(height: int, width: int, bit_depth: int) -> bytes:
    """The bytes before the first row: they follow from the geometry alone."""
    header = _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bit_depth, RGB, 0, 0, 0))
    idat = struct.pack('>I', _idat_bytes(height, width * 3 * bit_depth // 8)) + b'IDAT'
    return SIGNATURE + header + idat + ZLIB_HEADER


def encode_flat_png(image: np.ndarray) -> bytes:
    """In-place PNG of RGB (H, W, 3), uint8 or uint16.

    A row longer than one stored block (21844 pixels of 8 bits, 10922 of 16) makes an ordinary uncompressed PNG, which
    `view_flat_png` passes over. Raises ValueError for another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.uint16) or not image.size:
        raise ValueError(f'in-place PNG: expected RGB (H, W, 3), uint8 or uint16, got {image.dtype} {image.shape}')
    height, width = image.shape[:2]
    row_bytes = width * 3 * image.itemsize
    if row_bytes + 1 > LONGEST_BLOCK:
        bgr = np.ascontiguousarray(image[..., ::-1])
        return cv2.imencode('.png', bgr, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    pixels = np.ascontiguousarray(image, image.dtype.newbyteorder('>'))
    rows = np.empty((height, ROW_HEADER + row_bytes), np.uint8)
    rows[:, :ROW_HEADER] = np.frombuffer(_row_header(row_bytes, final=False), np.uint8)
    rows[-1, 0] = True
    rows[:, ROW_HEADER:] = pixels.view(np.uint8).reshape(height, row_bytes)
    adler = zlib.adler32(np.ascontiguousarray(rows[:, ROW_HEADER - 1 :]))
    head, content = _head(height, width, 8 * image.itemsize), rows.tobytes() + struct.pack('>I', adler)
    crc = zlib.crc32(content, zlib.crc32(b'IDAT' + ZLIB_HEADER))
    return head + content + struct.pack('>I', crc) + TAIL


def view_flat_png(data: bytes | memoryview, rows: range | None = None) -> np.ndarray | None:
    """Read-only view (H, W, 3) of the pixels of an in-place PNG, RGB, uint8 or '>u2'; no byte is copied.

    None for anything that does not begin as an in-place PNG (its header is compared with its checksum): another PNG,
    to be decoded. Raises ValueError for what begins as one and then does not go on as one: cut short, or damaged
    between the rows. The values themselves are not checked: that would read the whole file. For the same reason
    `rows` may name those about to be used; only what stands between these is looked at.
    """
    if len(data) < FIRST_PIXEL:
        return None
    head = bytes(data[:FIRST_PIXEL])
    width, height, bit_depth = struct.unpack_from('>IIB', head, 16)
    row_bytes = width * 3 * bit_depth // 8
    if bit_depth not in (8, 16) or not height or not width or row_bytes + 1 > LONGEST_BLOCK:
        return None
    if _idat_bytes(height, row_bytes) >= 2**31 or head[:FIRST_ROW] != _head(height, width, bit_depth):
        return None
    if head[FIRST_ROW:] != _row_header(row_bytes, final=height == 1):
        return None
    _check_rest(data, height, row_bytes, rows or range(height))
    value = np.dtype('u1' if bit_depth == 8 else '>u2')
    strides = (ROW_HEADER + row_bytes, 3 * value.itemsize, value.itemsize)
    view = np.ndarray((height, width, 3), value, data, FIRST_PIXEL, strides)
    view.flags.writeable = False
    return view


def _check_rest(data: bytes | memoryview, height: int, row_bytes: int, rows: range) -> None:
    expected = FIRST_ROW - len(ZLIB_HEADER) + _idat_bytes(height, row_bytes) + 4 + len(TAIL)
    if len(data) != expected:
        raise ValueError(f'in-place PNG of {len(data)} bytes, its header says {expected}: replace it by a whole copy')
    stride = ROW_HEADER + row_bytes
    headers = np.ndarray((height, ROW_HEADER), np.uint8, data, FIRST_ROW, (stride, 1))
    inner = headers[rows.start : min(rows.stop, height - 1)]
    sound = inner.tobytes() == _row_header(row_bytes, final=False) * len(inner)
    sound = sound and headers[-1].tobytes() == _row_header(row_bytes, final=True)
    if not sound or bytes(data[-len(TAIL) :]) != TAIL:
        raise ValueError('in-place PNG damaged between its rows or at its end: replace it by a sound copy')
