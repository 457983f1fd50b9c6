# Run with the environment of julia/test/Project.toml, or with any that has its packages:
#     julia --project=… julia/test/runtests.jl [quality]
# With `quality`, also Aqua's and ExplicitImports' checks of the package.

using Test

@testset "PyNODE" begin
    include("sample.jl")
    include("lower.jl")
    include("straight.jl")
    include("blocks.jl")
    include("threads.jl")
    include("matrices.jl")
    include("fourier.jl")
    include("first_step.jl")
    include("discrete.jl")
    include("symplectic.jl")
    include("nystrom.jl")
    include("mass.jl")
    include("split.jl")
    include("bridge.jl")
    include("fields.jl")
    include("device_jacobian.jl")
    include("independent.jl")
    include("callback.jl")
    include("layer.jl")
    include("stochastic.jl")
    include("ptx.jl")
    "quality" in ARGS && include("quality.jl")
end
