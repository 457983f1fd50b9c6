"""The torch engine: torchdiffeq runs the field as it is."""

import torch

with torch.device("cpu"):  # it keeps tensors of its own, on the default device of whoever imports it first
    import torchdiffeq

__all__ = ["torchdiffeq"]
