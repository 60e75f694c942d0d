"""What BasicSR's FileClient reads, looked at once: an LMDB when it is opened, an image when it is first read."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from mtkd_data.damage import MissingImage, check_encoded
from mtkd_data.image_io import EXTENSIONS
from mtkd_data.lmdb_pages import sound_keys

IMAGES = (*EXTENSIONS, '.webp', '.tif', '.tiff')


def opens_soundly(upstream: Callable[..., None]) -> Callable[..., None]:
    """``FileClient.__init__`` that raises OSError for a damaged LMDB, before it is mapped."""

    @functools.wraps(upstream)
    def __init__(self: Any, backend: str = 'disk', **kwargs: Any) -> None:
        paths = kwargs.get('db_paths') or ()
        self.folders = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
        for folder in self.folders if backend == 'lmdb' else ():
            if (folder / 'data.mdb').is_file():  # otherwise LMDB itself says so
                sound_keys(folder)
        self.seen = set()
        try:
            upstream(self, backend, **kwargs)
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            raise OSError(f'{", ".join(map(str, self.folders))} cannot be opened as LMDBs: {error}') from error

    return __init__


def gets_soundly(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """``FileClient.get`` that raises, naming it, for a missing key and an image that is not whole.

    Files are images by their extension, values of an LMDB where it has the ``meta_info.txt`` of BasicSR's.
    """

    @functools.wraps(upstream)
    def get(self: Any, filepath: str | Path, client_key: str = 'default') -> Any:
        item = (str(filepath), client_key)
        try:
            value = upstream(self, filepath, client_key)
        except lmdb.Error as error:
            raise OSError(f'{_folder(self, client_key)}: {filepath} cannot be read: {error}') from error
        if item not in self.seen:
            _look(self, *item, value)
            self.seen.add(item)
        return value

    return get


def _look(client: Any, key: str, client_key: str, value: Any) -> None:
    if client.backend == 'lmdb':
        folder = _folder(client, client_key)
        if value is None:
            raise MissingImage(f'{folder}: no image {key!r}, though meta_info.txt may name it: copy the LMDB again')
        if (folder / 'meta_info.txt').is_file():
            check_encoded(value, f'{folder}: {key}')
    elif client.backend == 'disk' and Path(key).suffix.lower() in IMAGES:
        check_encoded(value, key)


def _folder(client: Any, client_key: str) -> Path:
    keys = list(getattr(client.client, '_client', ()))
    return client.folders[keys.index(client_key)] if client_key in keys else Path(client_key)
