"""torchdiffeq's functions under torchdiffeq's signatures: replacing the import line is the whole migration.

Each function takes one keyword more, `engine`. On the torch engine a call is torchdiffeq's own. On the julia
engine `pynode.solve` makes it; the numbers then agree to the tolerances (torchdiffeq's `rk4` is the 3/8 rule,
Julia's the classical one), and a field that counts its evaluations in Python counts those of its trace only.

`engine="auto"` takes julia where it is available and can express the call, and torch otherwise; the logger
`pynode` says once for which reason. Only torchdiffeq has: callbacks of `func`, `event_fn` in functions other
than `odeint_event`, options of adaptive solvers other than `first_step` and `max_num_steps` and of fixed-step ones
other than `step_size`, tolerances per component, a backward solve by another method, options or parameters than
those that `func` reads, and `odeint_dense`. By name the julia engine refuses these.
"""

from pynode.compat.odeint import odeint as odeint
from pynode.compat.odeint import odeint_adjoint as odeint_adjoint
from pynode.compat.odeint import odeint_dense as odeint_dense
from pynode.compat.odeint import odeint_event as odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
