"""Image sets that do not ship with a dependency: read from the files that the user has."""

from __future__ import annotations

import codecs
import gzip
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import TensorDataset

from pynode.errors import InputError

__all__ = ["cifar10", "mnist"]

_MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR10 = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
# What the pickle of an array names; the first function's module is not the same in every NumPy.
_ALLOWED = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "encode": codecs.encode,
}


def mnist(root: str | Path) -> tuple[TensorDataset, TensorDataset]:
    """MNIST, or a set in its format (Fashion-MNIST, KMNIST), from its four idx files.

    Args:
        root: the folder with the files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`
            and `t10k-labels-idx1-ubyte`, as they are or gzipped; or the folder above `MNIST/raw`, where torchvision
            puts them.

    Returns:
        Training and test set, each of images `(n, 1, 28, 28)` in [0, 1], float32, and labels `(n,)`, int64.

    Raises:
        InputError: a file is missing, or is not what its name says.

    Source:
        Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998.
    """
    folder = _folder(root, "MNIST", [name for pair in _MNIST.values() for name in pair], ("MNIST/raw",), (".gz",))
    train, test = (
        _dataset(folder, *(_idx(_file(folder, name, (".gz",)), ndim) for name, ndim in zip(pair, (3, 1), strict=True)))
        for pair in _MNIST.values()
    )
    return train, test


def cifar10(root: str | Path) -> tuple[TensorDataset, TensorDataset]:
    """CIFAR-10 from the pickled batches of its Python version.

    The files are unpickled with nothing allowed but arrays.

    Args:
        root: the folder with the files `data_batch_1` to `data_batch_5` and `test_batch`, or the one above
            `cifar-10-batches-py`.

    Returns:
        Training and test set, each of images `(n, 3, 32, 32)` in [0, 1], float32, and labels `(n,)`, int64.

    Raises:
        InputError: a file is missing, or is not what its name says.

    Source:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    names = [name for part in _CIFAR10.values() for name in part]
    folder = _folder(root, "CIFAR-10", names, ("cifar-10-batches-py",))
    train, test = (_batches(folder, part) for part in _CIFAR10.values())
    return train, test


def _file(folder: Path, name: str, suffixes: tuple[str, ...] = ()) -> Path | None:
    found = (path for suffix in ("", *suffixes) if (path := folder / f"{name}{suffix}").is_file())
    return next(found, None)


def _folder(
    root: str | Path, title: str, names: list[str], inner: tuple[str, ...], suffixes: tuple[str, ...] = ()
) -> Path:
    """The first of `root` and its folders `inner` that holds all files."""
    root = Path(root).expanduser()
    folders = [root, *(root / name for name in inner)]
    missing = {folder: [name for name in names if _file(folder, name, suffixes) is None] for folder in folders}
    for folder, absent in missing.items():
        if not absent:
            return folder
    nearest = min(folders, key=lambda folder: len(missing[folder]))
    raise InputError(
        f"{title} is not in {root}: {', '.join(missing[nearest])} missing"
        f"{'' if nearest == root else f' from {nearest}'}. pynode downloads no data: get the files of {title} and name "
        f"their folder as root; sets that need no file are pynode.data.digits() and the toy problems"
    )


def _dataset(folder: Path, images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    if len(images) != len(labels):
        raise InputError(f"the files in {folder} do not belong together: {len(images)} images, {len(labels)} labels")
    pixels = torch.from_numpy(images).float().div_(255)
    return TensorDataset(pixels if pixels.ndim == 4 else pixels.unsqueeze(1), torch.from_numpy(labels).long())


def _idx(path: Path | None, ndim: int) -> np.ndarray:
    """The array of an idx file of bytes: 0, 0, type 8, number of dimensions; sizes as big-endian int32; the data."""
    assert path is not None
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * ndim
    if raw[:4] != bytes((0, 0, 8, ndim)) or len(raw) < header:
        raise InputError(f"{path} is no idx file of {ndim}-dimensional bytes: it begins with {raw[:4].hex(' ')}")
    shape = np.frombuffer(raw, ">i4", ndim, 4).tolist()
    if len(raw) - header != np.prod(shape):
        raise InputError(f"{path} is cut or damaged: expected {np.prod(shape)} bytes of data, got {len(raw) - header}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()


def _batches(folder: Path, names: tuple[str, ...]) -> TensorDataset:
    images, labels = [], []
    for name in names:
        with (folder / name).open("rb") as file:
            try:
                batch = _Arrays(file).load()
                images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
                labels.append(np.asarray(batch[b"labels"], np.int64))
            except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
                raise InputError(f"{folder / name} is no batch of CIFAR-10: {error!r}") from error
    return _dataset(folder, np.concatenate(images), np.concatenate(labels))


class _Arrays(pickle.Unpickler):
    """Unpickles Python 2's containers of arrays and plain values; anything else could run code."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get(name) if module.partition(".")[0] in ("numpy", "_codecs") else None
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return found
