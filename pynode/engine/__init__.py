"""The engines that integrate, behind one small protocol."""

from pynode.engine._protocol import Availability as Availability
from pynode.engine._protocol import Retcode as Retcode
from pynode.engine._protocol import Stats as Stats
from pynode.engine._solvers import SolverInfo as SolverInfo
from pynode.engine._solvers import solvers as solvers
from pynode.engine.choose import engines as engines

__all__ = ["Availability", "Retcode", "SolverInfo", "Stats", "engines", "solvers"]
