"""Files of tensors: read without running code in them, and never damaged without a word.

torch's own reader passes over the checksums in a ``.pth``: a flipped bit is another weight. They are compared here.
safetensors have none; those that this project writes carry one. Files of torch before 1.6, and safetensors of others,
cannot be told from damaged ones unless the damage shows.
"""

import errno
import hashlib
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKSUM = 'sha256_of_content'  # in the header of safetensors
ZIP, TORCHSCRIPT = b'PK\x03\x04', 'constants.pkl'


def read_tensor_file(path: Path, device: str = 'cpu') -> Any:
    """What a ``.pth``, ``.pt``, ``.state`` or ``.safetensors`` file holds, on ``device``.

    Raises FileNotFoundError, OSError where the disk fails, ValueError for whatever is damaged or more than tensors and
    plain values; all name the file.
    """
    return explained(path, lambda path: _load(path, device))


def explained(path: Path, read: Callable[[Path], Any]) -> Any:
    """``read(path)``, with errors that name the file."""
    if not path.is_file():
        raise FileNotFoundError(f'no such weights file: {path}')
    try:
        return read(path)
    except Exception as error:  # a damaged file raises any of a dozen types, such as struct.error
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a seek beyond a file cut short
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{path} cannot be read as tensors alone (damaged, or not a state dict): {reason}') from error


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the tensors, with their names, types and shapes, and of the texts beside them."""
    others = sorted((key, text) for key, text in metadata.items() if key != CHECKSUM)
    found = hashlib.sha256(json.dumps(others).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _load(path: Path, device: str) -> Any:
    if path.suffix == '.safetensors':
        return _load_safetensors(path, device)
    with path.open('rb') as file:
        start = file.read(len(ZIP))
    if start == ZIP:
        _check_parts(path)
    elif tarfile.is_tarfile(path):  # more than once torch ran code of such a file, tensors alone or not
        raise ValueError('it is a tar file, which torch of 2017 wrote')
    return torch.load(path, map_location=device, weights_only=True)


def _check_parts(path: Path) -> None:
    """Raise ValueError for a part whose checksum is another, and for programs."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.filename.rpartition('/')[2] == TORCHSCRIPT for part in parts):
            raise ValueError('it is a TorchScript program')
        without = all(part.CRC == 0 for part in parts)  # torch can be told to save without
        damaged = None if without else archive.testzip()
    if damaged is not None:
        raise ValueError(f'the checksum of its part {damaged} is another')


def _load_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise ValueError('its checksum is another')
    return {name: value.to(device) for name, value in tensors.items()}
