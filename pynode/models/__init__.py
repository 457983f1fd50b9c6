"""Models: plain `nn.Module`s on top of `pynode.solve`."""

from pynode.models._adaptive import AdaptiveDepthNODE as AdaptiveDepthNODE
from pynode.models._anode import ANODE as ANODE
from pynode.models._cde import NeuralCDE as NeuralCDE
from pynode.models._cnf import CNF as CNF
from pynode.models._density import parameter_gradient_density as parameter_gradient_density
from pynode.models._dequantised import Dequantised as Dequantised
from pynode.models._ffjord import FFJORD as FFJORD
from pynode.models._graph import CGNN as CGNN
from pynode.models._graph import GraphODE as GraphODE
from pynode.models._gru_ode_bayes import GRUODEBayes as GRUODEBayes
from pynode.models._hypersolver import Hypersolver as Hypersolver
from pynode.models._jump_ode import JumpODE as JumpODE
from pynode.models._latent import LatentODE as LatentODE
from pynode.models._latent_sde import LatentSDE as LatentSDE
from pynode.models._mechanics import HamiltonianNN as HamiltonianNN
from pynode.models._mechanics import LagrangianNN as LagrangianNN
from pynode.models._node import NODE as NODE
from pynode.models._ode_rnn import ODERNN as ODERNN
from pynode.models._odenet import ODENet as ODENet
from pynode.models._odenet import RKNet as RKNet
from pynode.models._resnet import ResNet as ResNet
from pynode.models._rnn import RNN as RNN
from pynode.models._sde import NeuralSDE as NeuralSDE
from pynode.models._stacked import StackedNODE as StackedNODE

__all__ = [
    "ANODE",
    "CGNN",
    "CNF",
    "FFJORD",
    "NODE",
    "ODERNN",
    "RNN",
    "AdaptiveDepthNODE",
    "Dequantised",
    "GRUODEBayes",
    "GraphODE",
    "HamiltonianNN",
    "Hypersolver",
    "JumpODE",
    "LagrangianNN",
    "LatentODE",
    "LatentSDE",
    "NeuralCDE",
    "NeuralSDE",
    "ODENet",
    "RKNet",
    "ResNet",
    "StackedNODE",
    "parameter_gradient_density",
]
