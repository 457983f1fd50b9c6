# Mass matrices, against the ordinary differential equation that is left when the algebraic equation has been solved by hand.

using PyNODE: Mass, mass_pullback

# With M = diag(1, 0) the sample field leaves dx/dt = tanh(w₁₁ x + w₁₂ y) + sin t and 0 = tanh(w₂₁ x + w₂₂ y) + sin t, which
# is w₂₁ x + w₂₂ y = -artanh(sin t).
function reduced(x0, θ, ts; steps = 200)
    y(x, t) = (-atanh(sin(t)) .- θ[3] .* x) ./ θ[4]
    rate(x, t) = tanh.(θ[1] .* x .+ θ[2] .* y(x, t)) .+ sin(t)
    both(x, t) = vec(permutedims([x y(x, t)]))
    x = x0 .+ zero(eltype(θ)) .+ zero(eltype(ts))
    saved = [both(x, ts[1])]
    for (a, b) in zip(ts, ts[2:end])
        h = (b - a) / steps
        for n in 0:(steps - 1)
            t = a + n * h
            k1 = rate(x, t)
            k2 = rate(x .+ h / 2 .* k1, t + h / 2)
            k3 = rate(x .+ h / 2 .* k2, t + h / 2)
            x = x .+ h / 6 .* (k1 .+ 2 .* k2 .+ 2 .* k3 .+ rate(x .+ h .* k3, t + h))
        end
        push!(saved, both(x, b))
    end
    return reduce(hcat, saved)
end

@testset "a mass matrix of rank 1 by $solver" for solver in ("Rodas5P", "FBDF")
    mass = Mass([1.0 0.0; 0.0 0.0], reshape([0.0, 1.0], 2, 1), reshape([0.0, 1.0], 2, 1))
    x0, θ, ts = [0.3, 0.5, -0.4], [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 0.74, 1.2]
    exact = reduced(x0, θ, ts)
    field, values = sample_field(Float64, 3; products = :split), zeros(6, 4)
    options = Options(; solver, rtol = 1e-9, atol = 1e-10, keep = :dense, mass)
    summary, fw = forward!(values, field, exact[:, 1], ts, θ, options)
    @test summary.outcome === PyNODE.success
    @test values ≈ exact rtol = 1e-7
    g = reshape(sin.(1.0:24.0), 6, 4)
    c = mass_pullback(fw, g, PyNODE.Adjoint(; name = :interpolating))
    # The first column is the state that was given: only its part x leads on.
    loss(x, p, τ) = dot(g[:, 2:end], reduced(x, p, τ)[:, 2:end])
    @test c.u0[1:2:end] ≈ g[1:2:end, 1] + ForwardDiff.gradient(x -> loss(x, θ, ts), x0) rtol = 1e-5
    @test c.u0[2:2:end] ≈ g[2:2:end, 1] rtol = 1e-12
    @test c.θ ≈ ForwardDiff.gradient(p -> loss(x0, p, ts), θ) rtol = 1e-5
    @test c.ts ≈ ForwardDiff.gradient(τ -> loss(x0, θ, τ), ts) rtol = 1e-5
end

@testset "a regular mass matrix" begin
    matrix = [2.0 0.5; -0.3 1.0]
    mass = Mass(matrix, zeros(2, 0), zeros(2, 0))
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1], [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 1.2]
    rate(u, t) = vec(matrix \ reshape(exact_field(u, θ, t), 2, :))
    expected, u = copy(u0), copy(u0)
    for (a, b) in zip(ts, ts[2:end])
        h = (b - a) / 200
        for n in 0:199
            t = a + n * h
            k1 = rate(u, t)
            k2 = rate(u + h / 2 * k1, t + h / 2)
            k3 = rate(u + h / 2 * k2, t + h / 2)
            u += h / 6 * (k1 + 2k2 + 2k3 + rate(u + h * k3, t + h))
        end
        expected = hcat(expected, u)
    end
    values = zeros(4, 3)
    options = Options(; solver = "Rodas5P", rtol = 1e-9, atol = 1e-10, mass)
    forward!(values, sample_field(Float64, 2; products = :split), u0, ts, θ, options)
    @test values ≈ expected rtol = 1e-7
end
