"""Layers that vector fields are built of."""

from pynode.nn._basis import Basis as Basis
from pynode.nn._basis import Chebyshev as Chebyshev
from pynode.nn._basis import Fourier as Fourier
from pynode.nn._basis import GaussianRBF as GaussianRBF
from pynode.nn._basis import Legendre as Legendre
from pynode.nn._basis import PiecewiseLinear as PiecewiseLinear
from pynode.nn._control import DataControl as DataControl
from pynode.nn._galerkin import GalerkinConv2d as GalerkinConv2d
from pynode.nn._galerkin import GalerkinLinear as GalerkinLinear
from pynode.nn._graph import Graph as Graph
from pynode.nn._graph import GraphConv as GraphConv
from pynode.nn._graph import GraphLayer as GraphLayer
from pynode.nn._hamiltonian import HamiltonianField as HamiltonianField
from pynode.nn._hamiltonian import SeparableHamiltonian as SeparableHamiltonian
from pynode.nn._hyper import Hypernetwork as Hypernetwork
from pynode.nn._image import ConvField as ConvField
from pynode.nn._image import ConvHead as ConvHead
from pynode.nn._image import ConvStem as ConvStem
from pynode.nn._lagrangian import LagrangianField as LagrangianField
from pynode.nn._order import HigherOrder as HigherOrder
from pynode.nn._squash import ConcatSquash as ConcatSquash
from pynode.nn._time import TimeConcat as TimeConcat
from pynode.nn._time import TimeSequential as TimeSequential
from pynode.nn._variant import DepthVariant as DepthVariant

__all__ = [
    "Basis",
    "Chebyshev",
    "ConcatSquash",
    "ConvField",
    "ConvHead",
    "ConvStem",
    "DataControl",
    "DepthVariant",
    "Fourier",
    "GalerkinConv2d",
    "GalerkinLinear",
    "GaussianRBF",
    "Graph",
    "GraphConv",
    "GraphLayer",
    "HamiltonianField",
    "HigherOrder",
    "Hypernetwork",
    "LagrangianField",
    "Legendre",
    "PiecewiseLinear",
    "SeparableHamiltonian",
    "TimeConcat",
    "TimeSequential",
]
