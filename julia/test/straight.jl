# Programs as straight code, against the same programs as loops; after lower.jl, whose helpers it takes.

using PyNODE: Kernel, Workspace, bind, new_residuals, straight

# Results of a run on inputs `1:n`, for which buffers follow; `run` is a program's or straight code.
function placed_results(run, program, arrays, nodes, batch)
    buffers = Any[copy.(arrays)..., (fill(NaN, PyNODE.sizes(n.shape, batch)) for n in nodes)...]
    foreach(s -> push!(buffers, s.make(Float64[], batch, buffers)), program.specs)
    run(Tuple(buffers), 0.5, batch)
    return buffers[length(arrays) .+ eachindex(nodes)]
end

@testset "straight code computes what loops do" begin
    taken = Dict{Symbol,Int}()
    for (g, shapes, _) in RUN
        n, last = length(shapes), length(g.nodes)
        g.nodes[last].dtype === :float || continue
        arrays = map(g.nodes[1:n]) do node
            size = PyNODE.sizes(node.shape, 1)
            node.dtype === :bool ? rand(Xoshiro(1), Bool, size) : draw(size...)
        end
        program = PyNODE.lower(g, Float64, Dict(i => i for i in 1:n), n + 1, [last => n + 1])
        code = straight(program.computation, 1)
        code === nothing && continue
        results = map(run -> placed_results(run, program, arrays, g.nodes[[last]], 1), (program.run, code))
        @test isapprox(results...; rtol = 1e-14, nans = true)
        foreach(n -> taken[n.op] = get(taken, n.op, 0) + 1, g.nodes)
    end
    @test issubset((:slice, :cat, :embed, :mm, :sum, :permute, :reshape, :index_select, :pow, :where, :expand, :const), keys(taken))
    @test sum(values(taken)) > 60
end

@testset "fields of one sample are straight code: $T" for T in (Float64, Float32)
    for g in (PERCEPTRON, PyNODE.Graph(PyNODE.SAMPLE), PyNODE.Graph(read(joinpath(PyNODE.WORKLOAD, "species.json"), String)))
        kernel = Kernel{T}(g)
        looped, short = Workspace(kernel, 1), Workspace(kernel, 1)
        programs = (:prologue, :value, :record, :vjp, :replay, :vjp_state, :vjp_theta)
        foreach(name -> looped.straight[getfield(kernel, name)] = nothing, programs)
        results = map((looped, short)) do w
            foreach(x -> copyto!(x, sin.(eachindex(x))), (w.u, w.θ, w.v))
            residuals = new_residuals(w)
            return map(programs) do name
                foreach(x -> fill!(x, 0), (w.du, w.dz, w.dθ, w.dt))
                bind(w, getfield(kernel, name); residuals)(T(0.3))
                return copy.((w.du, w.dz, w.dθ, w.dt, w.frontier..., residuals...))
            end
        end
        @test all(all(isapprox.(a, b; rtol = 8eps(T))) for (a, b) in zip(results...))
        @test all(f -> f !== nothing, values(short.straight)) && length(short.straight) == length(programs)
        # A batch of several is not, nor is one sample of many numbers.
        several = Workspace(kernel, 2)
        bind(several, kernel.value)
        @test several.straight[kernel.value] === nothing
    end
end

@testset "no straight code" begin
    wide(n) = graph(["z"], [input(0, [[1, 0], n]), node("mul", [0, 0], [[1, 0], n])])
    steep(n, op) = graph(["z"], [input(0, [[1, 0], n]), node(op, [0], [[1, 0], n])])
    code(g; batch = 1) = straight(PyNODE.lower(g, Float64, Dict(1 => 1), 2, [2 => 2]).computation, batch)
    @test code(wide(60)) !== nothing
    @test code(wide(70)) === nothing
    @test code(steep(4, "tanh")) !== nothing
    @test code(steep(5, "tanh")) === nothing
    @test code(steep(5, "sin")) !== nothing
    @test code(graph(["z"], [input(0, [[1, 0], 2]), node("cumsum", [0], [[1, 0], 2]; dim = 1)])) === nothing
    @test code(wide(3); batch = 2) === code(wide(3); batch = 0) === nothing
    # What has no numbers is no straight code either.
    @test code(wide(0)) === nothing
end
