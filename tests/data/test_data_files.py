"""The readers of files that the user has, on files of their formats."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from pynode import data
from pynode.errors import InputError


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_files():
    random = np.random.default_rng(0)
    images = {part: random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 7), ("t10k", 3))}
    labels = {part: np.arange(len(x), dtype=np.uint8) for part, x in images.items()}
    files = {f"{part}-images-idx3-ubyte": idx(x) for part, x in images.items()}
    files |= {f"{part}-labels-idx1-ubyte": idx(x) for part, x in labels.items()}
    return images, files


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_mnist(tmp_path, mnist_files, folder, zipped):
    images, files = mnist_files
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = tmp_path / folder / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(content) if zipped else content)
    for dataset, part in zip(data.mnist(tmp_path), ("train", "t10k"), strict=True):
        x, y = dataset.tensors
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        np.testing.assert_allclose(x[:, 0].numpy() * 255, images[part], atol=1e-4)
        assert y.tolist() == list(range(len(x)))


def test_mnist_that_is_not_there(tmp_path, mnist_files):
    with pytest.raises(InputError, match=r"MNIST is not in .*train-images-idx3-ubyte.*downloads no data.*as root"):
        data.mnist(tmp_path / "nowhere")
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for name, content in mnist_files[1].items():
        if "t10k-labels" not in name:
            (tmp_path / "MNIST/raw" / name).write_bytes(content)
    with pytest.raises(InputError, match=r"MNIST is not in .*: t10k-labels-idx1-ubyte missing from .*raw"):
        data.mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda x: x[:-1], r"cut or damaged: expected 5488 bytes of data, got 5487"),
        ("train-images-idx3-ubyte", lambda x: b"<html>" + x, r"no idx file of 3-dimensional bytes: .* 3c 68 74 6d"),
        ("train-labels-idx1-ubyte", lambda x: idx(np.zeros(6, np.uint8)), r"7 images, 6 labels"),
    ],
)
def test_mnist_that_is_damaged(tmp_path, mnist_files, name, damage, message):
    for other, content in mnist_files[1].items():
        (tmp_path / other).write_bytes(damage(content) if other == name else content)
    with pytest.raises(InputError, match=message):
        data.mnist(tmp_path)


def test_mnist_that_is_no_gzip(tmp_path, mnist_files):
    for name, content in mnist_files[1].items():
        (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        data.mnist(tmp_path)


def batches(folder, change=lambda batch: batch):
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = {}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels[name] = random.integers(0, 256, (2, 3072), dtype=np.uint8)
        batch = {b"data": pixels[name], b"labels": [k, 9], b"filenames": [b"a", b"b"]}
        (folder / name).write_bytes(pickle.dumps(change(batch), protocol=2))
    return pixels


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py"])
def test_cifar10(tmp_path, folder):
    pixels = batches(tmp_path / folder)
    train, test = data.cifar10(tmp_path)
    assert train.tensors[0].shape == (10, 3, 32, 32)
    assert train.tensors[1].tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    x, y = test.tensors
    np.testing.assert_allclose(x.flatten(1).numpy() * 255, pixels["test_batch"], atol=1e-4)
    assert y.tolist() == [5, 9]


def test_cifar10_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"CIFAR-10 is not in .*data_batch_1, .*test_batch missing"):
        data.cifar10(tmp_path)


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {b"data": batch[b"data"]}, r"data_batch_1 is no batch of CIFAR-10: KeyError\(b'labels'\)"),
        (lambda batch: batch | {b"more": Malicious()}, r"which is no array"),
        (lambda batch: {b"data": batch[b"data"][:, 1:], b"labels": [0, 1]}, r"is no batch of CIFAR-10: ValueError"),
        (lambda batch: [1, 2], r"is no batch of CIFAR-10: TypeError"),
    ],
)
def test_cifar10_that_is_damaged(tmp_path, change, message, capsys):
    batches(tmp_path, change)
    with pytest.raises(InputError, match=message):
        data.cifar10(tmp_path)
    assert "code ran" not in capsys.readouterr().out
