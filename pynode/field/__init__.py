"""What a vector field is: its calling convention, its trace, and the graph that the trace gives."""

from pynode.field._convert import supported_ops as supported_ops
from pynode.field._explain import Cost as Cost
from pynode.field._explain import Explanation as Explanation
from pynode.field._explain import StepCost as StepCost
from pynode.field._explain import explain as explain
from pynode.field._field import Field as Field
from pynode.field._graph import FieldGraph as FieldGraph
from pynode.field._interpreter import interpret as interpret
from pynode.field._trace import trace as trace

__all__ = [
    "Cost",
    "Explanation",
    "Field",
    "FieldGraph",
    "StepCost",
    "explain",
    "interpret",
    "supported_ops",
    "trace",
]
