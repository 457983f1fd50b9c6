"""Models: plain `nn.Module`s on top of `pynode.solve`."""

from pynode.models._node import NODE as NODE
from pynode.models._resnet import ResNet as ResNet

__all__ = ["NODE", "ResNet"]
