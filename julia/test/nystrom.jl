# Nyström methods against their steps in plain code over any number type, and against OrdinaryDiffEqRKN's where that is
# installed.

using ForwardDiff: ForwardDiff
using PyNODE: NYSTROM, Nystrom

# dq/dt = v and dv/dt = sin t - a q² - tanh(a v), for q and v of two numbers.
const SECOND_ORDER = """
{"version": 1, "batch": null,
 "inputs": [{"kind": "t", "name": "0", "shape": []}, {"kind": "z", "name": "0", "shape": [[1, 0], 2]},
            {"kind": "z", "name": "1", "shape": [[1, 0], 2]}, {"kind": "parameter", "name": "a", "shape": [2]},
            {"kind": "cotangent", "name": "0", "shape": [[1, 0], 2]}, {"kind": "cotangent", "name": "1", "shape": [[1, 0], 2]}],
 "nodes": [
  {"op": "input", "in": [], "shape": [], "dtype": "float", "attrs": {"index": 0}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 1}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 2}},
  {"op": "input", "in": [], "shape": [2], "dtype": "float", "attrs": {"index": 3}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 4}},
  {"op": "input", "in": [], "shape": [[1, 0], 2], "dtype": "float", "attrs": {"index": 5}},
  {"op": "sin", "in": [0], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [1, 1], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [3, 7], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sub", "in": [6, 8], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [2, 3], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "tanh", "in": [10], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sub", "in": [9, 11], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "neg", "in": [5], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [11, 11], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sub", "in": [{"number": 1}, 14], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [13, 15], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [2, 16], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [3, 16], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [17], "shape": [2], "dtype": "float", "attrs": {"dims": [0], "keepdim": false}},
  {"op": "add", "in": [4, 18], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [5], "shape": [], "dtype": "float", "attrs": {"dims": [0, 1], "keepdim": false}},
  {"op": "mul", "in": [7, 13], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [3, 13], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [22], "shape": [2], "dtype": "float", "attrs": {"dims": [0], "keepdim": false}},
  {"op": "add", "in": [19, 24], "shape": [2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [1, 23], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "add", "in": [26, 26], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "cos", "in": [0], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [21, 28], "shape": [], "dtype": "float", "attrs": {}}],
 "value": [2, 12], "vjp": [29, 27, 20, 25]}
"""

second_order_field(T, batch) = TracedField(Workspace(Kernel{T}(PyNODE.Graph(SECOND_ORDER)), batch))

acceleration(q, v, θ, t) = vec(sin(t) .- θ .* reshape(q, 2, :) .^ 2 .- tanh.(θ .* reshape(v, 2, :)))

"The states at `ts`, by the steps that `fw` took, whose ends move with the times that they were cut to land on."
function replay_nystrom(fw, x::Nystrom, u0, θ, ts)
    grid, n = grid_of(fw, ts), length(u0) ÷ 2
    q, v = (u0[part] .+ zero(eltype(θ)) .+ zero(eltype(ts)) for part in (1:n, (n + 1):(2n)))
    saved = [[q; v]]
    for n in 1:(length(grid) - 1)
        t, h = grid[n], grid[n + 1] - grid[n]
        f = typeof(q)[]
        sum_of(a) = sum((a[j] * f[j] for j in eachindex(f)); init = zero(q))
        for i in 1:(x.s)
            Q, V = q + x.c[i] * h * v + h^2 * sum_of(x.P[i, :]), v + h * sum_of(x.A[i, :])
            push!(f, acceleration(Q, V, θ, t + x.c[i] * h))
        end
        q, v = q + h * v + h^2 * sum_of(x.p), v + h * sum_of(x.b)
        fw.steps.t[n + 1] in fw.ts && push!(saved, [q; v])
    end
    return reduce(hcat, saved)
end

@testset "discrete adjoint of $solver, memory $memory" for solver in NYSTROM, memory in (2^30, 400)
    field = second_order_field(Float64, 2)
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2, 0.7, -0.6], [0.4, -0.7], [0.0, 0.31, 0.74, 1.2]
    adaptive = solver != "Nystrom4"
    options = Options(; solver, dt = 0.05, adaptive, rtol = 1e-8, atol = 1e-8, keep = :stages, memory)
    values = zeros(8, 4)
    summary, fw = forward!(values, field, u0, ts, θ, options)
    x = PyNODE.tableau(solver, Float64)
    @test summary.accepted == length(fw.steps.t) - 1
    @test adaptive || summary.accepted == 7 + 9 + 10
    @test (fw.steps.every > 0) == (memory == 400)
    @test replay_nystrom(fw, x, u0, θ, ts) ≈ values rtol = 1e-13
    g = reshape(sin.(1.0:32.0), 8, 4)
    c = discrete_pullback(fw, g)
    loss(u, p, τ) = dot(g, replay_nystrom(fw, x, u, p, τ))
    @test c.u0 ≈ ForwardDiff.gradient(u -> loss(u, θ, ts), u0) rtol = 1e-12
    @test c.θ ≈ ForwardDiff.gradient(p -> loss(u0, p, ts), θ) rtol = 1e-12
    @test c.ts ≈ ForwardDiff.gradient(τ -> loss(u0, θ, τ), ts) rtol = 1e-11
end

const NYSTROM_PACKAGE = Base.PkgId(Base.UUID("af6ede74-add8-4cfd-b1df-9a4dbb109d7a"), "OrdinaryDiffEqRKN")

Base.locate_package(NYSTROM_PACKAGE) === nothing || @testset "the steps of OrdinaryDiffEqRKN: $solver" for solver in NYSTROM
    theirs = Base.require(NYSTROM_PACKAGE)
    a, adaptive = [0.4, -0.7], solver != "Nystrom4"
    reads = solver != "DPRKN6"
    force!(dv, v, q, _, t) = (dv .= sin(t) .- a .* q .^ 2 .- (reads ? tanh.(a .* v) : 0.0); nothing)
    rate!(dq, v, q, _, t) = (dq .= v; nothing)
    problem = PyNODE.SciMLBase.DynamicalODEProblem(force!, rate!, [0.5, 0.1], [0.3, -0.2], (0.0, 2.0))
    integrator =
        Base.invokelatest(PyNODE.init, problem, getfield(theirs, Symbol(solver))(); dt = 0.1, adaptive, reltol = 1.0, abstol = 1.0)
    Base.invokelatest(PyNODE.step!, integrator)
    x = PyNODE.tableau(solver, Float64)
    q, v, f = [0.3, -0.2], [0.5, 0.1], Vector{Float64}[]
    sum_of(a) = sum((a[j] * f[j] for j in eachindex(f)); init = zero(q))
    for i in 1:(x.s)
        Q, V, df = q + x.c[i] * 0.1 * v + 0.01 * sum_of(x.P[i, :]), v + 0.1 * sum_of(x.A[i, :]), zero(v)
        force!(df, V, Q, nothing, x.c[i] * 0.1)
        push!(f, df)
    end
    @test integrator.t ≈ 0.1
    @test Vector(integrator.u) ≈ [v + 0.1 * sum_of(x.b); q + 0.1 * v + 0.01 * sum_of(x.p)] rtol = 1e-14
    if adaptive
        error = [0.1 * sum_of(x.eb); 0.01 * sum_of(x.ep)]
        size = 1 .+ max.(abs.([0.5, 0.1, 0.3, -0.2]), abs.(Vector(integrator.u)))
        @test integrator.EEst ≈ sqrt(sum(abs2, error ./ size) / 4) rtol = 1e-10
    end
end
