"""Data sets: the toy problems of the papers, and real sets that ship inside a dependency."""

from pynode.data._digits import digits as digits
from pynode.data._series import lynx_hare as lynx_hare
from pynode.data._series import spirals as spirals
from pynode.data._toy import cubic as cubic
from pynode.data._toy import spiral as spiral

__all__ = ["cubic", "digits", "lynx_hare", "spiral", "spirals"]
