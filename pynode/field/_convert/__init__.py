"""Turns ATen operations into nodes of the graph."""

from pynode.field._convert import _image, _index, _linear, _pointwise, _reduce, _shape  # noqa: F401 (they fill the table)
from pynode.field._convert._call import HANDLERS as HANDLERS
from pynode.field._convert._call import Call as Call
from pynode.field._convert._call import Ref as Ref
from pynode.field._convert._call import Unsupported as Unsupported
from pynode.field._convert._call import supported_ops as supported_ops
from pynode.field._convert._call import target_name as target_name

__all__ = ["HANDLERS", "Call", "Ref", "Unsupported", "supported_ops", "target_name"]
