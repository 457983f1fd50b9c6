# The sample field of the precompile workload, with its exact formulas: dz/dt = tanh(z Wᵀ) + sin(t).

using LinearAlgebra
using PyNODE
using PyNODE: Kernel, Options, TracedField, Workspace, discrete_pullback, forward!

sample_kernel(T) = Kernel{T}(PyNODE.Graph(PyNODE.SAMPLE))
sample_field(T, batch; products = :joint) = TracedField(Workspace(sample_kernel(T), batch); products)

# Julia's layout: `u` is `(2, batch)` as a vector, `θ` is W with rows and columns swapped.
exact_field(u, θ, t) = vec(tanh.(transpose(reshape(θ, 2, 2)) * reshape(u, 2, :)) .+ sin(t))
