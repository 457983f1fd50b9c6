"""Data sets: the toy problems of the papers, and real sets that ship inside a dependency."""

from pynode.data._crossing import annuli as annuli
from pynode.data._crossing import in_slices as in_slices
from pynode.data._crossing import reflection as reflection
from pynode.data._density import density as density
from pynode.data._digits import digits as digits
from pynode.data._files import cifar10 as cifar10
from pynode.data._files import mnist as mnist
from pynode.data._series import lynx_hare as lynx_hare
from pynode.data._series import spirals as spirals
from pynode.data._toy import cubic as cubic
from pynode.data._toy import spiral as spiral

__all__ = [
    "annuli",
    "cifar10",
    "cubic",
    "density",
    "digits",
    "in_slices",
    "lynx_hare",
    "mnist",
    "reflection",
    "spiral",
    "spirals",
]
