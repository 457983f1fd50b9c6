"""The engines that integrate, behind one small protocol."""

from pynode.engine.choose import engines as engines
from pynode.engine.protocol import Availability as Availability
from pynode.engine.protocol import Retcode as Retcode
from pynode.engine.protocol import Stats as Stats
from pynode.engine.solvers import SolverInfo as SolverInfo
from pynode.engine.solvers import solvers as solvers
from pynode.engine.stochastic import StochasticSolver as StochasticSolver
from pynode.engine.stochastic import sde_solvers as sde_solvers

__all__ = ["Availability", "Retcode", "SolverInfo", "Stats", "StochasticSolver", "engines", "sde_solvers", "solvers"]
