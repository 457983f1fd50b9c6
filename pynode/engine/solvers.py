"""The one vocabulary of solver names over all engines."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.errors import EngineUnavailable, InputError, unknown_name

__all__ = ["SOLVERS", "SolverInfo", "find_solver", "resolve_solver", "solvers"]


@dataclass(frozen=True)
class SolverInfo:
    """One solver.

    Attributes:
        name: the name that `pynode.solve` takes.
        order: order of convergence (for variable-order methods, the highest).
        adaptive: whether it chooses its own step; fixed-step solvers need `dt`.
        stiff: whether it is meant for stiff fields.
        matrix_free: whether it solves its linear systems by GMRES, from products with the Jacobian, and never makes
            that: for large states.
        opaque: whether the julia engine has no discrete adjoint of its steps, though it is not stiff: it is a multistep
            method, or one whose number of stages depends on the state.
        multistep: whether it has memory of earlier steps, and is not stiff.
        separable: whether it takes a state (q, p) alone, two tensors of one shape, and fields with dq/dt = g(t, p) and
            dp/dt = f(t, q): the symplectic methods.
        second_order: whether it takes a state (q, v) alone, two tensors of one shape, and fields with dq/dt = v: the
            Nyström methods.
        velocity_free: whether, of these, it takes fields alone whose dv/dt does not read v.
        mass: whether it takes a mass matrix, see `pynode.MassMatrix`.
        splits: whether it takes the parts of a `pynode.Split` apart: the implicit-explicit methods.
        torch: torchdiffeq's name, or `None` where the torch engine lacks it.
        julia: the OrdinaryDiffEq algorithm, or `None` where the julia engine lacks it.
    """

    name: str
    order: int
    adaptive: bool
    stiff: bool
    torch: str | None = None
    julia: str | None = None
    matrix_free: bool = False
    opaque: bool = False
    multistep: bool = False
    separable: bool = False
    second_order: bool = False
    velocity_free: bool = False
    mass: bool = False
    splits: bool = False

    @property
    def purpose(self) -> str:
        """What it is for, in a few words."""
        return _PURPOSES[self.name]

    @property
    def of_pairs(self) -> bool:
        """Whether it takes a state of two tensors of one shape alone."""
        return self.separable or self.second_order

    @property
    def takes_controller(self) -> bool:
        """Whether the julia engine's solver takes another controller of its steps: the one-step methods."""
        own = self.multistep or self.second_order or self.julia in ("FBDF", "FBDFKrylov", "QNDF", "AutoStiff")
        return self.adaptive and not own

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that have this solver."""
        return tuple(e for e in ("julia", "torch") if getattr(self, e) is not None)


_TABLE = [
    # name, order, adaptive, stiff, torchdiffeq, OrdinaryDiffEq
    SolverInfo("euler", 1, False, False, "euler", "Euler"),
    SolverInfo("midpoint", 2, False, False, "midpoint", "Midpoint"),
    SolverInfo("heun2", 2, False, False, "heun2", "Heun"),
    SolverInfo("heun3", 3, False, False, "heun3", None),
    SolverInfo("rk4", 4, False, False, "rk4", "RK4"),
    SolverInfo("adams", 4, False, False, "implicit_adams", None),
    SolverInfo("fehlberg2", 2, True, False, "fehlberg2", None),
    SolverInfo("adaptive_heun", 2, True, False, "adaptive_heun", "Heun"),
    SolverInfo("bosh3", 3, True, False, "bosh3", "BS3"),
    SolverInfo("dopri5", 5, True, False, "dopri5", "DP5"),
    SolverInfo("tsit5", 5, True, False, None, "Tsit5"),
    SolverInfo("vern6", 6, True, False, None, "Vern6"),
    SolverInfo("vern7", 7, True, False, None, "Vern7"),
    SolverInfo("vern8", 8, True, False, None, "Vern8"),
    SolverInfo("vern9", 9, True, False, None, "Vern9"),
    SolverInfo("dopri8", 8, True, False, "dopri8", "DP8"),
    SolverInfo("vcabm", 12, True, False, None, "VCABM", opaque=True, multistep=True),
    SolverInfo("ssprk33", 3, False, False, None, "SSPRK33"),
    SolverInfo("ssprk43", 3, True, False, None, "SSPRK43"),
    SolverInfo("ssprk104", 4, False, False, None, "SSPRK104"),
    SolverInfo("rdpk3spfsal35", 3, True, False, None, "RDPK3SpFSAL35"),
    SolverInfo("rdpk3spfsal49", 4, True, False, None, "RDPK3SpFSAL49"),
    SolverInfo("rock2", 2, True, False, None, "ROCK2", opaque=True),
    SolverInfo("rock4", 4, True, False, None, "ROCK4", opaque=True),
    SolverInfo("verlet", 2, False, False, None, "VelocityVerlet", separable=True),
    SolverInfo("forest_ruth", 4, False, False, None, "CandyRoz4", separable=True),
    SolverInfo("yoshida6", 6, False, False, None, "Yoshida6", separable=True),
    SolverInfo("kahan_li8", 8, False, False, None, "KahanLi8", separable=True),
    SolverInfo("nystrom4", 4, False, False, None, "Nystrom4", second_order=True),
    SolverInfo("dprkn6", 6, True, False, None, "DPRKN6", second_order=True, velocity_free=True),
    SolverInfo("fine_rkn5", 5, True, False, None, "FineRKN5", second_order=True),
    SolverInfo("lsoda", 12, True, True, "LSODA", None),
    SolverInfo("bdf", 5, True, True, "BDF", None),
    SolverInfo("radau", 5, True, True, "Radau", None),
    SolverInfo("rosenbrock23", 2, True, True, None, "Rosenbrock23"),
    SolverInfo("rodas5p", 5, True, True, None, "Rodas5P", mass=True),
    SolverInfo("trbdf2", 2, True, True, None, "TRBDF2"),
    SolverInfo("kencarp3", 3, True, True, None, "KenCarp3", splits=True),
    SolverInfo("kencarp4", 4, True, True, None, "KenCarp4", splits=True),
    SolverInfo("kencarp5", 5, True, True, None, "KenCarp5", splits=True),
    SolverInfo("fbdf", 5, True, True, None, "FBDF", mass=True),
    SolverInfo("qndf", 5, True, True, None, "QNDF"),
    SolverInfo("kencarp4_krylov", 4, True, True, None, "KenCarp4Krylov", True),
    SolverInfo("fbdf_krylov", 5, True, True, None, "FBDFKrylov", True),
    SolverInfo("auto_stiff", 5, True, True, None, "AutoStiff"),  # Tsit5, and Rodas5P where it turns out stiff
]

# What a solver is for, by name.
_PURPOSES = {
    "euler": "one evaluation a step; residual networks as ODEs",
    "midpoint": "fixed steps, second order",
    "heun2": "fixed steps, second order; the trapezoidal rule",
    "heun3": "fixed steps, third order",
    "rk4": "fixed steps, fourth order; when every step has to cost the same",
    "adams": "fixed steps, implicit multistep; smooth fields that are expensive",
    "fehlberg2": "adaptive, very loose tolerances",
    "adaptive_heun": "adaptive, loose tolerances",
    "bosh3": "adaptive, tolerances of 1e-2 to 1e-3",
    "dopri5": "adaptive, tolerances of 1e-3 to 1e-7; what other packages have as default",
    "tsit5": "adaptive, tolerances of 1e-3 to 1e-7; the default, more accurate per step than dopri5",
    "vern6": "adaptive, tolerances of 1e-6 to 1e-9",
    "vern7": "adaptive, tolerances of 1e-7 to 1e-11",
    "vern8": "adaptive, tolerances of 1e-9 to 1e-13",
    "vern9": "adaptive, tolerances below 1e-10; reference solutions",
    "dopri8": "adaptive, tight tolerances",
    "vcabm": "adaptive multistep; smooth fields that are expensive, tight tolerances",
    "ssprk33": "fixed steps; hyperbolic equations with shocks, whose bounds it keeps",
    "ssprk43": "adaptive; hyperbolic equations with shocks",
    "ssprk104": "fixed steps, long ones; hyperbolic equations with shocks",
    "rdpk3spfsal35": "adaptive; wave-dominated equations, steps bounded by stability",
    "rdpk3spfsal49": "adaptive; wave-dominated equations, steps bounded by stability, tighter tolerances",
    "rock2": "stabilised; diffusion and other stiffness along the negative real axis, loose tolerances",
    "rock4": "stabilised; diffusion and other stiffness along the negative real axis",
    "verlet": "symplectic, fixed steps; long times of a state (q, p), energy within a bound; molecular dynamics",
    "forest_ruth": "symplectic, fixed steps, fourth order; long times of a state (q, p)",
    "yoshida6": "symplectic, fixed steps, sixth order; long times of a state (q, p), such as orbits",
    "kahan_li8": "symplectic, fixed steps, eighth order; the energy of a state (q, p) close to rounding",
    "nystrom4": "second-order fields, a state (q, v) with dq/dt = v; fixed steps",
    "dprkn6": "second-order fields whose acceleration does not read the velocity; adaptive, rtol 1e-4 to 1e-11",
    "fine_rkn5": "second-order fields, with friction too; adaptive, rtol 1e-3 to 1e-8",
    "lsoda": "switches between Adams and BDF; SciPy's",
    "bdf": "stiff; SciPy's",
    "radau": "stiff, tight tolerances; SciPy's",
    "rosenbrock23": "stiff, loose tolerances, small states",
    "rodas5p": "stiff, tolerances of 1e-4 to 1e-9, states up to some hundred numbers; mass matrices",
    "trbdf2": "stiff, loose tolerances, jumps",
    "kencarp3": "stiff, loose tolerances, larger states; implicit-explicit for a Split",
    "kencarp4": "stiff, medium tolerances, larger states; implicit-explicit for a Split",
    "kencarp5": "stiff, tighter tolerances, larger states; implicit-explicit for a Split",
    "fbdf": "stiff, large states, expensive fields; mass matrices",
    "qndf": "stiff, large states, expensive fields",
    "kencarp4_krylov": "stiff, very large states (PDEs): no Jacobian is made",
    "fbdf_krylov": "stiff, very large states (PDEs): no Jacobian is made",
    "auto_stiff": "when it is not known whether the field is stiff, or that changes",
}

SOLVERS: dict[str, SolverInfo] = {s.name: s for s in _TABLE}

_BEST_54 = {"julia": "tsit5", "torch": "dopri5"}


def solvers() -> list[SolverInfo]:
    """Every solver that `pynode.solve` knows, with its order, kind and the engines that have it."""
    return list(SOLVERS.values())


def find_solver(name: str) -> SolverInfo:
    """Look a solver up by name.

    Raises:
        InputError: the name is unknown; the message lists the valid ones, nearest first.
    """
    if not isinstance(name, str):
        raise InputError(f"solver must be a name from pynode.solvers(), got {type(name).__name__}")
    if name not in SOLVERS:
        raise unknown_name("solver", name, ["auto", *SOLVERS])
    return SOLVERS[name]


def resolve_solver(name: str, engine: str) -> SolverInfo:
    """The solver of that name on that engine; `"auto"` is the engine's best 5(4) pair.

    Raises:
        InputError: the name is unknown.
        EngineUnavailable: the engine lacks the solver; the message says which engine has it.
    """
    info = find_solver(_BEST_54[engine] if name == "auto" else name)
    if engine not in info.engines:
        others = " and ".join(f'engine="{e}"' for e in info.engines)
        here = ", ".join(s.name for s in _TABLE if engine in s.engines)
        raise EngineUnavailable(
            f"the {engine} engine has no solver {name!r}; it is on {others}. "
            f"Pass {others}, or one of the {engine} engine's solvers: {here}"
        )
    return info
