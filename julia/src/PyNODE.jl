"""
Vector fields traced in PyTorch, solved and differentiated natively.

`Kernel` lowers a traced graph to in-place programs, `Workspace` holds their buffers, `forward` and `pullback` solve
and differentiate. Python's `pynode` is the front end.
"""
module PyNODE

using Base.Broadcast: Broadcasted
using ChainRulesCore: ChainRulesCore, NoTangent, unthunk
using DiffEqBase: DiffEqBase, calculate_residuals!
using FastBroadcast: FastBroadcast, @.., Serial
using FunctionWrappers: FunctionWrapper
using JSON: JSON
using LinearAlgebra: LinearAlgebra, BLAS, Symmetric, Transpose, UniformScaling, dot, eigen!, mul!, nullspace, svd!, transpose
using LuxCore: LuxCore
using NNlib: batched_mul!, batched_transpose, tanh_fast
using OrdinaryDiffEqCore: DEOptions, OrdinaryDiffEqCore, IController, ODEIntegrator, PIController, PIDController,
    alg_adaptive_order, alg_order, default_dt_factor_limiter
using OrdinaryDiffEqHighOrderRK: DP8
using OrdinaryDiffEqLowOrderRK: BS3, DP5, Euler, Heun, Midpoint, RK4
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqVerner: Vern6, Vern7, Vern8, Vern9
using PrecompileTools: @compile_workload
using Random: AbstractRNG, Xoshiro
using RuntimeGeneratedFunctions: RuntimeGeneratedFunctions, @RuntimeGeneratedFunction
using SciMLBase: SciMLBase, AbstractODEFunction, AbstractODEProblem, FullSpecialize, NoInit, NullParameters, ODEFunction, ODEProblem,
    ReturnCode, SplitFunction, SplitODEProblem, build_solution, init, isinplace, reinit!, set_proposed_dt!,
    solve!, step!, successful_retcode, unwrapped_f
using SpecialFunctions: besselix, digamma, erf, erfc, erfcinv, erfcx, erfinv, gamma_inc, logabsgamma, polygamma

RuntimeGeneratedFunctions.init(@__MODULE__)

"The type of times, whatever that of the state."
const Time = Float64

include("native/loading.jl")
include("graph/graph.jl")

include("lower/elementary.jl")
include("lower/pointwise.jl")
include("lower/threads.jl")
include("lower/lower.jl")
include("lower/assign.jl")
include("lower/operations.jl")
include("lower/products.jl")
include("lower/indexing.jl")
include("lower/matrices.jl")
include("lower/orthogonal.jl")
include("lower/fourier.jl")
include("lower/columns.jl")
include("lower/rows.jl")
include("lower/boxes.jl")
include("lower/convolution.jl")
include("lower/kernel.jl")
include("lower/straight.jl")
include("lower/apart.jl")
include("lower/memory.jl")
include("lower/workspace.jl")

include("solve/progress.jl")
include("solve/interrupt.jl")
include("solve/callback.jl")
include("solve/tape.jl")
include("solve/field.jl")
include("solve/function.jl")
include("solve/device_jacobian.jl")
include("solve/solvers.jl")
include("solve/shared.jl")
include("solve/tableau.jl")
include("solve/control.jl")
include("solve/mass.jl")
include("solve/split.jl")
include("solve/clock.jl")
include("solve/between.jl")
include("solve/forward.jl")
include("solve/first_step.jl")
include("solve/record.jl")
include("solve/steps.jl")
include("solve/symplectic.jl")
include("solve/nystrom.jl")
include("solve/event.jl")
include("solve/independent.jl")

include("adjoint/tangent.jl")
include("adjoint/discrete.jl")
include("adjoint/symplectic.jl")
include("adjoint/nystrom.jl")
include("adjoint/continuous.jl")
include("adjoint/quadrature.jl")
include("adjoint/mass.jl")

include("bridge/device.jl")
include("bridge/fields.jl")
include("bridge/bridge.jl")
include("bridge/split.jl")
include("bridge/callback.jl")
include("bridge/event.jl")
include("bridge/independent.jl")
include("bridge/training.jl")
include("bridge/layer.jl")
include("bridge/collocation.jl")
include("bridge/entries.jl")
include("bridge/stochastic.jl")

include("native/packages.jl")
include("native/parameters.jl")
include("native/code.jl")
include("native/networks.jl")
include("native/evaluation.jl")
include("native/products.jl")
include("native/lowering.jl")
include("native/call.jl")

include("precompile.jl")

end
