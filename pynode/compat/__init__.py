"""torchdiffeq's functions under torchdiffeq's signatures: replacing the import line is the whole migration.

Each function takes one keyword more, `engine`. On the torch engine a call is torchdiffeq's own. On the julia
engine `pynode.solve` makes it; the numbers then agree to the tolerances (torchdiffeq's `rk4` is the 3/8 rule,
Julia's the classical one). `engine="auto"` takes julia where it is available and can express the call, and
torch otherwise. `odeint_dense`, and `event_fn` in functions other than `odeint_event`, are always torchdiffeq's.
"""

from pynode.compat.odeint import odeint as odeint
from pynode.compat.odeint import odeint_adjoint as odeint_adjoint
from pynode.compat.odeint import odeint_dense as odeint_dense
from pynode.compat.odeint import odeint_event as odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
