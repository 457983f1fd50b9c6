# Symplectic methods against their steps in plain code over any number type, and against OrdinaryDiffEqSymplecticRK's where
# that is installed.

using ForwardDiff: ForwardDiff
using PyNODE: SYMPLECTIC, Splitting

# dq/dt = tanh(a p) + sin t and dp/dt = -q³ reverse(a) + cos t, for q and p of two numbers.
const SEPARABLE = """
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
  {"op": "mul", "in": [2, 3], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "tanh", "in": [6], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sin", "in": [0], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "add", "in": [7, 8], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "pow", "in": [1, {"number": 3}], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "neg", "in": [10], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "flip", "in": [3], "shape": [2], "dtype": "float", "attrs": {"dims": [0]}},
  {"op": "mul", "in": [11, 12], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "cos", "in": [0], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "add", "in": [13, 14], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [5], "shape": [], "dtype": "float", "attrs": {"dims": [0, 1], "keepdim": false}},
  {"op": "neg", "in": [8], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [16, 17], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [5, 11], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [19], "shape": [2], "dtype": "float", "attrs": {"dims": [0], "keepdim": false}},
  {"op": "flip", "in": [20], "shape": [2], "dtype": "float", "attrs": {"dims": [0]}},
  {"op": "mul", "in": [5, 12], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "neg", "in": [22], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "pow", "in": [1, {"number": 2.0}], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [24, {"number": 3.0}], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [23, 25], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [4], "shape": [], "dtype": "float", "attrs": {"dims": [0, 1], "keepdim": false}},
  {"op": "mul", "in": [14, 27], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "add", "in": [18, 28], "shape": [], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [7, 7], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sub", "in": [{"number": 1}, 30], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [4, 31], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [3, 32], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "mul", "in": [2, 32], "shape": [[1, 0], 2], "dtype": "float", "attrs": {}},
  {"op": "sum", "in": [34], "shape": [2], "dtype": "float", "attrs": {"dims": [0], "keepdim": false}},
  {"op": "add", "in": [21, 35], "shape": [2], "dtype": "float", "attrs": {}}],
 "value": [9, 15], "vjp": [29, 26, 33, 36]}
"""

separable_field(T, batch) = TracedField(Workspace(Kernel{T}(PyNODE.Graph(SEPARABLE)), batch))

positions(u) = u[1:(length(u) ÷ 2)]
momenta(u) = u[(length(u) ÷ 2 + 1):end]
drift_of(u, θ, t) = vec(tanh.(θ .* reshape(momenta(u), 2, :)) .+ sin(t))
kick_of(u, θ, t) = vec(-reshape(positions(u), 2, :) .^ 3 .* reverse(θ) .+ cos(t))

"The states at `ts`, by the steps that `fw` took, whose ends move with the times that they were cut to land on."
function replay_splitting(fw, x::Splitting, u0, θ, ts)
    grid = grid_of(fw, ts)
    q, p = (part(u0) .+ zero(eltype(θ)) .+ zero(eltype(ts)) for part in (positions, momenta))
    saved = [[q; p]]
    for n in 1:(length(grid) - 1)
        t, h = grid[n], grid[n + 1] - grid[n]
        for j in 1:(x.s)
            at = t + x.c[j] * h
            x.kicks[j] ? (p = p + h * x.w[j] * kick_of([q; p], θ, at)) : (q = q + h * x.w[j] * drift_of([q; p], θ, at))
        end
        fw.steps.t[n + 1] in fw.ts && push!(saved, [q; p])
    end
    return reduce(hcat, saved)
end

@testset "discrete adjoint of $solver, memory $memory" for solver in SYMPLECTIC, memory in (2^30, 400)
    field = separable_field(Float64, 2)
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2, 0.7, -0.6], [0.4, -0.7], [0.0, 0.31, 0.74, 1.2]
    options = Options(; solver, dt = 0.05, adaptive = false, keep = :stages, memory)
    values = zeros(8, 4)
    summary, fw = forward!(values, field, u0, ts, θ, options)
    x = PyNODE.tableau(solver, Float64)
    @test summary.accepted == length(fw.steps.t) - 1 == 7 + 9 + 10
    @test field.counts[1] == summary.accepted * (x.s - 1) + 1
    @test (fw.steps.every > 0) == (memory == 400)
    @test replay_splitting(fw, x, u0, θ, ts) ≈ values rtol = 1e-13
    g = reshape(sin.(1.0:32.0), 8, 4)
    c = discrete_pullback(fw, g)
    loss(u, p, τ) = dot(g, replay_splitting(fw, x, u, p, τ))
    @test c.u0 ≈ ForwardDiff.gradient(u -> loss(u, θ, ts), u0) rtol = 1e-12
    @test c.θ ≈ ForwardDiff.gradient(p -> loss(u0, p, ts), θ) rtol = 1e-12
    @test c.ts ≈ ForwardDiff.gradient(τ -> loss(u0, θ, τ), ts) rtol = 1e-11
end

@testset "what ends a symplectic solve" begin
    field, values = separable_field(Float64, 2), zeros(8, 2)
    u0, θ = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2, 0.7, -0.6], [0.4, -0.7]
    run(u0, o...) = forward!(values, field, u0, [0.0, 1.0], θ, Options(; solver = "Yoshida6", dt = 0.1, adaptive = false, o...))
    summary, _ = run(u0, :max_steps => 4)
    @test summary.outcome === PyNODE.max_steps && summary.reached ≈ 0.4 && summary.accepted == 4
    reference = copy(values[:, 2])
    forward!(values, field, u0, [0.0, 0.4], θ, Options(; solver = "Yoshida6", dt = 0.1, adaptive = false))
    @test values[:, 2] == reference
    summary, _ = run(1e120 * u0)
    @test summary.outcome === PyNODE.non_finite && all(isfinite, values[:, 2])
end

const SYMPLECTIC_PACKAGE =
    Base.PkgId(Base.UUID("fa646aed-7ef9-47eb-84c4-9443fc8cbfa8"), "OrdinaryDiffEqSymplecticRK")

Base.locate_package(SYMPLECTIC_PACKAGE) === nothing || @testset "the steps of OrdinaryDiffEqSymplecticRK" begin
    theirs = Base.require(SYMPLECTIC_PACKAGE)
    a = [0.4, 0.7]
    kick!(dp, p, q, _, t) = (dp .= -q .^ 3 .* reverse(a); nothing)
    drift!(dq, p, q, _, t) = (dq .= p; nothing)
    problem = PyNODE.SciMLBase.DynamicalODEProblem(kick!, drift!, [0.5, 0.1], [0.3, -0.2], (0.0, 2.0))
    for solver in SYMPLECTIC
        x = PyNODE.tableau(solver, Float64)
        q, p = [0.3, -0.2], [0.5, 0.1]
        for _ in 1:20, j in 1:(x.s)
            x.kicks[j] ? (p += 0.1 * x.w[j] * (-q .^ 3 .* reverse(a))) : (q += 0.1 * x.w[j] * p)
        end
        found = Base.invokelatest(PyNODE.solve!, Base.invokelatest(PyNODE.init, problem, getfield(theirs, Symbol(solver))(); dt = 0.1))
        # Yoshida's coefficients have fourteen digits there.
        @test [p; q] ≈ Vector(found.u[end]) rtol = solver == "Yoshida6" ? 1e-12 : 1e-14
    end
end
