"""In-place PNG: every reader agrees on it, pixels are seen without a copy, damage never changes the geometry."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from mtkd_data.flat_png import FIRST_PIXEL, ROW_HEADER, encode_flat_png, view_flat_png


def noise(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def structural(data: bytes, height: int, row_bytes: int) -> list[int]:
    """Positions of the bytes that are no pixels, Adler-32 and the CRC of IDAT aside: those cover the values."""
    stride = ROW_HEADER + row_bytes
    pixels = {FIRST_PIXEL + row * stride + place for row in range(height) for place in range(row_bytes)}
    sums = set(range(len(data) - 20, len(data) - 12))
    return [place for place in range(len(data)) if place not in pixels | sums]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 7), (9, 1), (37, 53)])
def test_other_readers_see_the_image_bit_for_bit(dtype, height, width):
    image = noise(height, width, dtype)
    data = encode_flat_png(image)
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert opencv.dtype == dtype
    np.testing.assert_array_equal(opencv[..., ::-1], image)
    pillow = np.asarray(matplotlib_image.pil_to_array(matplotlib_image.PIL.Image.open(io.BytesIO(data))))
    # Pillow has no 16-bit RGB: it shows the high bytes
    np.testing.assert_array_equal(pillow[..., :3], image if dtype == np.uint8 else image >> 8)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_the_chunks_are_those_of_the_standard_and_every_checksum_is_right(dtype):
    image = noise(5, 4, dtype)
    data = encode_flat_png(image)
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    chunks, position = [], 8
    while position < len(data):
        (length,) = struct.unpack_from('>I', data, position)
        kind, content = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert struct.unpack_from('>I', data, position + 8 + length)[0] == zlib.crc32(kind + content)
        chunks.append((kind, content))
        position += 12 + length
    assert [kind for kind, _ in chunks] == [b'IHDR', b'IDAT', b'IEND']
    assert chunks[0][1] == struct.pack('>IIBBBBB', 4, 5, 8 * image.itemsize, 2, 0, 0, 0)
    stream = zlib.decompress(chunks[1][1])  # checks the Adler-32 as well
    expected = b''.join(b'\0' + row.astype(image.dtype.newbyteorder('>')).tobytes() for row in image)
    assert stream == expected


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_the_view_shows_the_image_without_copying_it(dtype):
    image = noise(11, 6, dtype)
    data = bytearray(encode_flat_png(image))
    view = view_flat_png(memoryview(data))
    assert view.dtype == (np.uint8 if dtype == np.uint8 else np.dtype('>u2'))
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, image)
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize('image', [noise(4, 4)[..., 0], noise(4, 4)[..., :2], noise(4, 4).astype(np.float32)])
def test_what_is_no_rgb_of_8_or_16_bits_is_refused(image):
    with pytest.raises(ValueError, match=r'in-place PNG: expected RGB \(H, W, 3\), uint8 or uint16, got'):
        encode_flat_png(image)


@pytest.mark.parametrize(('dtype', 'widest'), [(np.uint8, 21844), (np.uint16, 10922)])
def test_a_row_longer_than_a_stored_block_makes_an_ordinary_png(dtype, widest):
    at_limit, beyond = noise(2, widest, dtype), noise(2, widest + 1, dtype)
    np.testing.assert_array_equal(view_flat_png(encode_flat_png(at_limit)), at_limit)
    data = encode_flat_png(beyond)
    assert view_flat_png(data) is None
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded[..., ::-1], beyond)


@pytest.mark.parametrize('level', range(10))
@pytest.mark.parametrize('shape', [(1, 1), (2, 17000), (40, 30)])
def test_a_png_of_another_writer_is_passed_over_or_seen_as_it_is(level, shape):
    image = noise(*shape)
    data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()
    view = view_flat_png(data)
    assert view is None or np.array_equal(view, image[..., ::-1])


def test_grey_and_other_content_is_passed_over():
    grey = cv2.imencode('.png', noise(4, 4)[..., 0], [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    for data in (b'', b'text', grey, cv2.imencode('.jpg', noise(16, 16))[1].tobytes(), bytes(200)):
        assert view_flat_png(data) is None


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_every_cut_and_every_extension_is_noticed(dtype):
    data = encode_flat_png(noise(3, 4, dtype))
    for end in range(FIRST_PIXEL):
        assert view_flat_png(data[:end]) is None
    for end in range(FIRST_PIXEL, len(data)):
        with pytest.raises(ValueError, match=f'in-place PNG of {end} bytes, its header says {len(data)}'):
            view_flat_png(data[:end])
    with pytest.raises(ValueError, match='its header says'):
        view_flat_png(data + b'\0')


@pytest.mark.parametrize('height', [1, 3])
def test_no_change_of_a_single_structural_byte_goes_unnoticed(height):
    data = encode_flat_png(noise(height, 4))
    places = structural(data, height, 12)
    assert len(places) == FIRST_PIXEL + (height - 1) * ROW_HEADER + 12
    for place in places:
        for value in range(256):
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            if changed == data:
                continue
            if place < FIRST_PIXEL:
                assert view_flat_png(changed) is None
            else:
                with pytest.raises(ValueError, match='damaged between its rows or at its end'):
                    view_flat_png(changed)


def test_rows_not_asked_for_are_not_looked_at():
    data = bytearray(encode_flat_png(noise(9, 4)))
    data[FIRST_PIXEL + 5 * (ROW_HEADER + 12) - 1] ^= 1  # the filter type of row 5
    assert view_flat_png(bytes(data), range(2, 5)) is not None
    for rows in (range(2, 6), range(5, 6), range(5, 9), None):
        with pytest.raises(ValueError, match='damaged between its rows'):
            view_flat_png(bytes(data), rows)
