"""Neural differential equations for PyTorch, solved and differentiated by Julia.

`pynode.compat` is imported by itself, since it loads torchdiffeq and SciPy: `from pynode.compat import odeint`. So is
`pynode.study`, the comparison of solvers: `from pynode import study`.
"""

from pynode import control as control
from pynode import data as data
from pynode import fit as fit
from pynode import models as models
from pynode import nn as nn
from pynode import plot as plot
from pynode.engine import Retcode as Retcode
from pynode.engine import Stats as Stats
from pynode.engine import engines as engines
from pynode.engine import sde_solvers as sde_solvers
from pynode.engine import solvers as solvers
from pynode.errors import EngineUnavailable as EngineUnavailable
from pynode.errors import FieldError as FieldError
from pynode.errors import InputError as InputError
from pynode.errors import NotComparable as NotComparable
from pynode.errors import PyNODEError as PyNODEError
from pynode.errors import PyNODEWarning as PyNODEWarning
from pynode.errors import SolveError as SolveError
from pynode.errors import StudyError as StudyError
from pynode.errors import TraceError as TraceError
from pynode.julia_field import JuliaField as JuliaField
from pynode.julia_field import trust_julia_code as trust_julia_code
from pynode.mass_matrix import MassMatrix as MassMatrix
from pynode.nn._split import Split as Split
from pynode.prepared import Prepared as Prepared
from pynode.prepared import prepare as prepare
from pynode.problem.event import At as At
from pynode.problem.event import Event as Event
from pynode.problem.event_log import EventLog as EventLog
from pynode.problem.progress import Progress as Progress
from pynode.sensitivity import Backsolve as Backsolve
from pynode.sensitivity import Discrete as Discrete
from pynode.sensitivity import Forward as Forward
from pynode.sensitivity import Gauss as Gauss
from pynode.sensitivity import Interpolating as Interpolating
from pynode.sensitivity import Quadrature as Quadrature
from pynode.sensitivity import Sensitivity as Sensitivity
from pynode.solution import Solution as Solution
from pynode.solve import solve as solve
from pynode.solve_sde import solve_sde as solve_sde
from pynode.step_control import StepControl as StepControl

__version__ = "0.1.0"

__all__ = [
    "At",
    "Backsolve",
    "Discrete",
    "EngineUnavailable",
    "Event",
    "EventLog",
    "FieldError",
    "Forward",
    "Gauss",
    "InputError",
    "Interpolating",
    "JuliaField",
    "MassMatrix",
    "NotComparable",
    "Prepared",
    "Progress",
    "PyNODEError",
    "PyNODEWarning",
    "Quadrature",
    "Retcode",
    "Sensitivity",
    "Solution",
    "SolveError",
    "Split",
    "Stats",
    "StepControl",
    "StudyError",
    "TraceError",
    "__version__",
    "control",
    "data",
    "engines",
    "fit",
    "models",
    "nn",
    "plot",
    "prepare",
    "sde_solvers",
    "solve",
    "solve_sde",
    "solvers",
    "trust_julia_code",
]
