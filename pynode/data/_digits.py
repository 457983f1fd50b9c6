"""The handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pynode.errors import InputError

__all__ = ["digits"]


def digits(
    *, test_fraction: float = 0.2, generator: torch.Generator | None = None
) -> tuple[TensorDataset, TensorDataset]:
    """The 1797 handwritten digits of scikit-learn, split into a training and a test set.

    The split is stratified: each digit gives the same share of its images to the test set.

    Args:
        test_fraction: share of the images that goes to the test set, between 0 and 1.
        generator: seeds the split; torch's default generator where `None`.

    Returns:
        Training and test set, each of images `(n, 1, 8, 8)` in [0, 1], float32, and labels `(n,)`, int64.

    Raises:
        InputError: `test_fraction` is not between 0 and 1.

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998; the copy of `sklearn.datasets.load_digits`.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must be between 0 and 1, both excluded, got {test_fraction!r}")
    from sklearn.datasets import load_digits  # here, so that importing pynode stays light

    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(raw.target, dtype=torch.int64)
    train, test = _stratified(labels, test_fraction, generator)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def _stratified(labels: Tensor, test_fraction: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Shuffled indices `(n_train,)` and `(n_test,)` with the same share of every class in the second."""
    train, test = [], []
    for label in labels.unique():
        members = torch.nonzero(labels == label).squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        n_test = round(test_fraction * len(members))
        test.append(members[:n_test])
        train.append(members[n_test:])

    def shuffled(parts: list[Tensor]) -> Tensor:
        indices = torch.cat(parts)
        return indices[torch.randperm(len(indices), generator=generator)]

    return shuffled(train), shuffled(test)
