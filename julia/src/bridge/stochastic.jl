# Stochastic solves, as Python calls them; the extension `PyNODEStochasticExt` makes them.

"The solvers of stochastic differential equations, by StochasticDiffEq's names."
const STOCHASTIC_SOLVERS = ("EM", "RKMil", "EulerHeun", "SRIW1", "SOSRI", "SRA1", "SOSRA")

const STOCHASTIC_PACKAGES =
    (Base.PkgId(Base.UUID("789caeaf-c7a9-5a7d-9973-96adeb23e2a0"), "StochasticDiffEq"),)

stochastic_solver_number(name) = findfirst(==(string(name)), STOCHASTIC_SOLVERS)

"Whether StochasticDiffEq is in Julia's environment."
has_stochastic() = Base.locate_package(first(STOCHASTIC_PACKAGES)) !== nothing

"The method of `stochastic` for a call's integers and floats, which the extension has."
function forward_stochastic end

"""
    stochastic(ints, n_ints, floats) -> Int

One solve of dz = f(t, z) dt + g(t, z) dW.

Integers: kernels of f and of g, batch, solver, whether in Stratonovich's sense, number of Brownian motions of a sample
(0: one for each number of z), sensitivity (0: none, 1: discrete, 2: backsolve), adaptive, max_steps, seed, number of times, their address; number of state
tensors, then for each its size, address and the address of its results; number of tensors of f's `θ`, then for each its
size and address; the same for g. The first state tensor is z, a second one is an integral of f's alone.
Floats: rtol, atol, dt (0: automatic); on return evaluations, accepted and rejected steps, outcome, the time reached.

Returns the number under which the solve is kept for `pullback`; 0 if nothing was to be kept.
"""
function stochastic(ints::Int, n_ints::Int, floats::Int)
    load(STOCHASTIC_PACKAGES)
    r = Reader(wrap(Int, ints, n_ints), 0)
    return Base.invokelatest(forward_stochastic, r, wrap(Float64, floats, 8))::Int
end

stochastic_entry(ints::Int, n::Int, floats::Int)::Int = guarded(stochastic, ints, n, floats)

"Address of the C function for `stochastic`, which takes three integers; it returns less than 0 after an error."
stochastic_entry_point() = Int(@cfunction(stochastic_entry, Int, (Int, Int, Int)))
