"""Turns ATen operations into nodes of the graph."""

from pynode.field._convert import (  # noqa: F401 (they fill the table)
    _fourier,
    _image,
    _index,
    _julia,
    _linear,
    _matrix,
    _maximum,
    _order,
    _pointwise,
    _reduce,
    _shape,
)
from pynode.field._convert._call import HANDLERS as HANDLERS
from pynode.field._convert._call import Call as Call
from pynode.field._convert._call import Ref as Ref
from pynode.field._convert._call import Unsupported as Unsupported
from pynode.field._convert._call import supported_ops as supported_ops
from pynode.field._convert._call import target_name as target_name

__all__ = ["HANDLERS", "Call", "Ref", "Unsupported", "supported_ops", "target_name"]
