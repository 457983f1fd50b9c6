"""
Vector fields traced in PyTorch, solved and differentiated natively.

`Kernel` lowers a traced graph to in-place programs, `Workspace` holds their buffers, `forward` and `pullback` solve
and differentiate. Python's `pynode` is the front end.
"""
module PyNODE

using JSON: JSON
using LinearAlgebra: mul!, transpose
using NNlib: batched_mul!, batched_transpose, sigmoid, tanh_fast
using RuntimeGeneratedFunctions: RuntimeGeneratedFunctions, @RuntimeGeneratedFunction
using SpecialFunctions: erf, erfc

RuntimeGeneratedFunctions.init(@__MODULE__)

include("graph.jl")
include("pointwise.jl")
include("lower.jl")
include("kernel.jl")

end
