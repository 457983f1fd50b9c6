# Graphs of lower.jl and the sample field on CUDA.jl's arrays, none of which has memory; see nodevice.jl.

using CUDA.GPUCompiler: InvalidIRError

CUDA.allowscalar(false)

on_gpu(T, shape...) = CuArray{T}(undef, shape...)

# What no GPU can do.
unknown(x) = Base.inferencebarrier(sin)(x)::Float64
heap(x) = sum(Float64[x, 2x, 3x][1:(1 + (x > 0))])

@testset "what does not compile for a GPU" begin
    x = on_gpu(Float64, 3, 4)
    @test (x .= tanh.(x); true)
    @test_throws InvalidIRError x .= unknown.(x)
    @test_throws Exception x .= heap.(x)
    # An entry by itself is none of a GPU's.
    @test_throws ErrorException x[1]
    @test_throws ErrorException x[1] = 2.0
end

@testset "kernels of a GPU: $T" for T in (Float64, Float32)
    for (g, batch) in ((PERCEPTRON, 40), (PyNODE.Graph(PyNODE.SAMPLE), 40))
        @test NoDevice.compile_field(g, batch, T) > 0
    end
end

@testset "kernels of a GPU: operations" begin
    for (g, shapes, batch) in RUN
        @test (NoDevice.launch(() -> run_graph(g, map(s -> on_gpu(Float64, s...), shapes), on_gpu(Float64, 0), batch)); true)
    end
    found = Dict(NoDevice.kinds())
    for kind in ("broadcast_kernel_cartesian", "broadcast_kernel_linear", "partial_mapreduce_grid", "serial_mapreduce_kernel")
        @test get(found, kind, 0) > 0
    end
    @test all(code -> occursin(".visible .entry", code), values(NoDevice.KERNELS))
    names = join(("$n $kind" for (kind, n) in NoDevice.kinds()), ", ")
    @info "Compiled to PTX, $(NoDevice.HAS_LIBRARY ? "with" : "without") CUDA's library of functions: $names."
end

@testset "kernels of a GPU: Jacobians by blocks, $T" for T in (Float64, Float32)
    field = PyNODE.TracedField(PyNODE.Workspace(sample_kernel(T), 40, on_gpu(T, 0)))
    jac = PyNODE.BlockJacobian(field)
    large = PyNODE.Places(fill!(on_gpu(Int, 3, 20), 1), fill!(on_gpu(Int, 60), 1), fill!(on_gpu(Int, 60), 1))
    NoDevice.launch() do
        J = similar(PyNODE.prototype(jac))
        jac(J, field.u, field.θ, 0.5)
        for J in (J, PyNODE.Blocks(on_gpu(T, 3, 20, 20), large))
            W, x = similar(J), on_gpu(T, size(J, 1))
            PyNODE.subtract_identity!(W, J, T(2))
            elimination = PyNODE.Elimination(W)
            PyNODE.factorise!(W, elimination)
            @test PyNODE.solve_blocks!(similar(x), W, elimination, x) isa CuArray
            @test opnorm(W, Inf) isa T
        end
    end
end
