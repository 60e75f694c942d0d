"""Heights and widths of the images of a source, without decoding them."""

import struct
from pathlib import Path

from mtkd_data.image_io import PNG_SIGNATURE, read_header
from mtkd_data.image_store import FileStore, ImageSource
from mtkd_data.lmdb_store import parse_meta

Size = tuple[int, int]


def sizes_of(source: ImageSource) -> list[Size]:
    """Height and width of every image: from meta_info.txt of an LMDB, from the header of each file.

    Raises ValueError for a line or a file that cannot be read.
    """
    if isinstance(source.store, FileStore):
        return [_file_size(Path(key)) for key in source.keys]
    path = source.store.path
    try:
        entries = {entry.key: entry[1:3] for entry in parse_meta((path / 'meta_info.txt').read_text())}
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return [entries[key] for key in source.keys]


def _file_size(path: Path) -> Size:
    with open(path, 'rb') as file:
        head = file.read(24)
    if head.startswith(PNG_SIGNATURE) and len(head) == 24:
        return struct.unpack('>II', head[16:])[::-1]
    header = read_header(path.read_bytes(), str(path))
    return header.height, header.width
