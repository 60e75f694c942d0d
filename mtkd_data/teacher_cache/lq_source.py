"""The LQ images of a training set, read as the networks shall see them, under the keys of their ground truth."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtkd_data.image_io import check_header, decode_image, is_turned, key_images, list_images, read_header
from mtkd_data.lmdb_store import LmdbReader, parse_meta_line
from mtkd_data.preparation.pair_keys import lq_key
from mtkd_data.preparation.plan import list_problems


@dataclass(frozen=True)
class LqImage:
    """What is known of an LQ image without decoding it."""

    height: int
    width: int
    sha256: str


class LqSource(AbstractContextManager):
    """The LQ images of ``datasets.train`` as PairedImageDataset pairs them: ``keys`` are those of the ground truth.

    Raises FileNotFoundError or ValueError for data that is missing, empty, or of which GT and LQ do not pair.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        for name in ('dataroot_gt', 'dataroot_lq', 'io_backend'):
            if not opt.get(name):
                raise ValueError(f"datasets.train lacks the key '{name}'")
        self.root = Path(opt['dataroot_lq'])
        backend = opt['io_backend'].get('type')
        if backend not in ('lmdb', 'disk'):
            raise ValueError(f'datasets.train.io_backend.type is {backend!r}, expected lmdb or disk')
        self._reader = LmdbReader(self.root) if backend == 'lmdb' else None
        try:
            self._names = self._pair_lmdb(opt) if self._reader else self._pair_folders(opt)
            if not self._names:
                raise ValueError(f'{self.root}: holds no images')
        except BaseException:
            self.__exit__()
            raise
        self.keys = sorted(self._names)

    def _pair_lmdb(self, opt: Mapping[str, Any]) -> dict[str, str]:
        _check_listed(self._reader)
        gt_keys, lq_keys = _keys_of_lmdb(Path(opt['dataroot_gt'])), set(self._reader)
        if gt_keys != lq_keys:
            only_gt, only_lq = sorted(gt_keys - lq_keys)[:3], sorted(lq_keys - gt_keys)[:3]
            raise ValueError(
                f'{opt["dataroot_gt"]} and {self.root} hold different keys; only in GT: {only_gt}; only in LQ: '
                f'{only_lq}: make both by one run of scripts/prepare_data.py'
            )
        return {key: key for key in gt_keys}

    def _pair_folders(self, opt: Mapping[str, Any]) -> dict[str, str]:
        gt, template = Path(opt['dataroot_gt']), opt.get('filename_tmpl') or '{}'
        paths = _listed(Path(opt['meta_info_file'])) if opt.get('meta_info_file') else list_images(gt)
        there = {path.name for path in list_images(self.root)}
        names = {key: lq_key(path.name, template) for key, path in key_images(paths).items()}
        missing = [f'{names[key]}, the partner of {key}' for key in sorted(names) if names[key] not in there]
        if missing:
            raise ValueError(f'{self.root}: {len(missing)} images are missing:\n  {list_problems(missing)}')
        if not opt.get('meta_info_file') and len(there) != len(names):
            strange = sorted(there - set(names.values()))[:3]
            raise ValueError(f'{self.root}: {len(there)} images, but {gt} has {len(names)}; only in LQ: {strange}')
        return names

    def __getitem__(self, key: str) -> bytes:
        name = self._names[key]
        return self._reader[name] if self._reader else (self.root / name).read_bytes()

    def name_of(self, key: str) -> str:
        """What errors call the image."""
        return f'{self.root}: {self._names[key]}' if self._reader else str(self.root / self._names[key])

    def inspect(self, watch: Callable[[Iterable[str]], Iterable[str]] = iter) -> dict[str, LqImage]:
        """Size and SHA-256 of every image; ``watch`` may show how far it is. Nothing is decoded.

        Raises ValueError that names all images (the first 20) which cannot be used.
        """
        found, problems = {}, []
        for key in watch(self.keys):
            data, name = self[key], self.name_of(key)
            try:
                header = read_header(data, name)
                check_header(header, name, grey='convert')
                if is_turned(data):
                    raise ValueError(f'{name}: has an EXIF orientation: turn its pixels and drop the tag')
            except ValueError as error:
                problems.append(str(error))
                continue
            found[key] = LqImage(header.height, header.width, hashlib.sha256(data).hexdigest())
        if problems:
            listed = list_problems(problems)
            raise ValueError(f'{len(problems)} of {len(self.keys)} LQ images cannot be used:\n  {listed}')
        return found

    def read(self, key: str, known: LqImage) -> np.ndarray:
        """The image as float32 RGB (3, H, W) in [0, 1]; grey is repeated, as BasicSR does.

        Raises ValueError, naming it, where it cannot be decoded or is not the image ``known`` was.
        """
        data = self[key]
        if hashlib.sha256(data).hexdigest() != known.sha256:
            raise ValueError(f'{self.name_of(key)}: changed while the cache was made: delete the .partial folder')
        image = decode_image(data, self.name_of(key), grey='convert')
        return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)).astype(np.float32) / np.float32(255)

    def __exit__(self, *_: object) -> None:
        if self._reader:
            self._reader.__exit__()


def _check_listed(reader: LmdbReader) -> None:
    """The images that BasicSR trains on are those of ``meta_info.txt``."""
    if reader.faults:
        raise ValueError(reader.faults[0])
    if set(reader) != reader.entries.keys():
        odd = sorted(set(reader) ^ reader.entries.keys())[:3]
        raise ValueError(f'{reader.path}: data.mdb and meta_info.txt hold different keys, such as {odd}: make it again')


def _keys_of_lmdb(path: Path) -> set[str]:
    if not (path / 'meta_info.txt').is_file():
        raise FileNotFoundError(f'{path}: expected an LMDB in the layout of BasicSR, meta_info.txt is missing')
    return {parse_meta_line(line).key for line in (path / 'meta_info.txt').read_text().splitlines() if line}


def _listed(path: Path) -> list[Path]:
    if not path.is_file():
        raise FileNotFoundError(f'datasets.train.meta_info_file: no such file: {path}')
    return [Path(line.split(' ')[0]) for line in path.read_text().splitlines() if line.strip()]
