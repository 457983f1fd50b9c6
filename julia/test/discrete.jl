using ForwardDiff: ForwardDiff

# The steps of a solve again, in plain code over any number type: the same times, the same coefficients.
function replay(fw, tab, u0, θ, ts, grid)
    saved = [u0]
    u = u0
    for n in 1:(length(grid) - 1)
        t, h = grid[n], grid[n + 1] - grid[n]
        k = Any[]
        for i in 1:(tab.s)
            push!(k, exact_field(u + h * sum(tab.A[i, j] * k[j] for j in 1:(i - 1); init = zero(u)), θ, t + tab.c[i] * h))
        end
        w, dw = zeros(tab.s), zeros(tab.s)
        for τ in ts
            fw.solution.t[n] < τ < fw.solution.t[n + 1] || continue
            PyNODE.weights!(w, dw, tab, (τ - fw.solution.t[n]) / (fw.solution.t[n + 1] - fw.solution.t[n]))
            push!(saved, u + h * sum(w[i] * k[i] for i in 1:(tab.s)))
        end
        u = u + h * sum(tab.b[i] * k[i] for i in 1:(tab.s))
        fw.solution.t[n + 1] in ts && push!(saved, u)
    end
    return reduce(hcat, saved)
end

@testset "discrete adjoint of $solver" for solver in PyNODE.EXPLICIT
    field = sample_field(Float64, 3)
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 0.74, 1.2]
    adaptive = !(solver in ("Euler", "Midpoint", "RK4"))
    options = Options(; solver, rtol = 1e-5, atol = 1e-7, dt = adaptive ? 0.0 : 0.25, adaptive, keep = :stages)
    values = zeros(6, 4)
    fw = forward!(values, field, u0, ts, θ, options)
    tab = PyNODE.tableau(solver, Float64)
    again = replay(fw, tab, u0, θ, ts, fw.solution.t)
    @test again ≈ values rtol = 1e-12
    g = reshape(sin.(1.0:24.0), 6, 4)
    c = discrete_pullback(fw, g)
    loss(u, p) = dot(g, replay(fw, tab, u, p, ts, fw.solution.t))
    @test c.u0 ≈ ForwardDiff.gradient(u -> loss(u, θ), u0) rtol = 1e-12
    @test c.θ ≈ ForwardDiff.gradient(p -> loss(u0, p), θ) rtol = 1e-12
    @test all(isfinite, c.ts)
end
