"""
Vector fields traced in PyTorch, solved and differentiated natively.

`Kernel` lowers a traced graph to in-place programs, `Workspace` holds their buffers, `forward` and `pullback` solve
and differentiate. Python's `pynode` is the front end.
"""
module PyNODE

using ChainRulesCore: ChainRulesCore, NoTangent, unthunk
using FunctionWrappers: FunctionWrapper
using JSON: JSON
using LinearAlgebra: BLAS, dot, mul!, transpose
using LuxCore: LuxCore
using NNlib: batched_mul!, batched_transpose, sigmoid, tanh_fast
using OrdinaryDiffEqCore: IController
using OrdinaryDiffEqHighOrderRK: DP8
using OrdinaryDiffEqLowOrderRK: BS3, DP5, Euler, Heun, Midpoint, RK4
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqVerner: Vern6, Vern7, Vern8, Vern9
using PrecompileTools: @compile_workload
using Random: AbstractRNG, Xoshiro
using RuntimeGeneratedFunctions: RuntimeGeneratedFunctions, @RuntimeGeneratedFunction
using SciMLBase: AbstractODEFunction, AbstractODEProblem, FullSpecialize, NullParameters, ODEFunction, ODEProblem,
    ReturnCode, init, isinplace, reinit!, solve, step!, successful_retcode, unwrapped_f
using SpecialFunctions: digamma, erf, erfc, erfinv, logabsgamma

RuntimeGeneratedFunctions.init(@__MODULE__)

include("graph.jl")
include("pointwise.jl")
include("lower.jl")
include("assign.jl")
include("operations.jl")
include("convolution.jl")
include("kernel.jl")
include("tape.jl")
include("field.jl")
include("solvers.jl")
include("tableau.jl")
include("forward.jl")
include("steps.jl")
include("discrete.jl")
include("continuous.jl")
include("device.jl")
include("bridge.jl")
include("event.jl")
include("independent.jl")
include("layer.jl")
include("native.jl")
include("collocation.jl")
include("precompile.jl")

end
