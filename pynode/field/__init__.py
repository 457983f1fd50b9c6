"""What a vector field is: its calling convention, its trace, and the graph that the trace gives."""

from pynode.field._field import Field as Field

__all__ = ["Field"]
