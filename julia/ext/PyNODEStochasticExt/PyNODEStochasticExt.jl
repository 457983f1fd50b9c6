"""
Stochastic differential equations: StochasticDiffEq takes the steps; the gradient is their exact transpose or comes from a solve backwards.
"""
module PyNODEStochasticExt

using FunctionWrappers: FunctionWrapper
using LinearAlgebra: LinearAlgebra, mul!, norm
using PyNODE: DRIFT, PyNODE, HOST, Outcome, Processor, Reader, SolveFailure, Stops, Time, TracedField, STOCHASTIC_SOLVERS, allfinite,
    bind!, enter!, field_for, fixed_grid, gather!, next!, non_finite, off_trajectory, outcome_of, recycle!, scatter, started,
    success, value!, vjp!, wrap
using Random: Xoshiro, randn!
using SciMLBase: SciMLBase, FullSpecialize, ReturnCode, SDEFunction, SDEProblem, init, step!, successful_retcode
using StochasticDiffEq: EM, EulerHeun, NoiseProcess, RKMil, RSWM, SOSRA, SOSRI, SRA1, SRIW1

include("blocks.jl")
include("noise.jl")
include("fields.jl")
include("tableau.jl")
include("forward.jl")
include("pullback.jl")
include("backsolve.jl")
include("bridge.jl")

end
