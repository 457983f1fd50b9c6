using DiffEqFlux: NeuralODE
using Lux: Lux
using OrdinaryDiffEqTsit5: Tsit5
using Random: default_rng
using SciMLSensitivity: GaussAdjoint, ZygoteVJP
using Zygote: Zygote

@testset "layer" begin
    θ = [0.4, -0.7, 0.6, 0.5]
    layer = PyNODE.TracedLayer(sample_kernel(Float64), θ; t = 0.3)
    ps, st = Lux.setup(default_rng(), layer)
    @test ps.θ == θ
    x = [0.3 -0.2 0.5; 0.1 -0.4 0.2]
    y, _ = layer(x, ps, st)
    @test vec(y) ≈ exact_field(vec(x), θ, 0.3) rtol = 1e-14
    loss(x, ps) = sum(abs2, first(layer(x, ps, st)))
    exact(x, θ) = sum(abs2, exact_field(vec(x), θ, 0.3))
    dx, dps = Zygote.gradient(loss, x, ps)
    ex, eθ = Zygote.gradient(exact, x, θ)
    @test dx ≈ ex rtol = 1e-12
    @test dps.θ ≈ eθ rtol = 1e-12
    @testset "in DiffEqFlux" begin
        node = NeuralODE(layer, (0.0, 1.0), Tsit5(); saveat = [1.0], reltol = 1e-9, abstol = 1e-9,
            sensealg = GaussAdjoint(; autojacvec = ZygoteVJP()))
        nps, nst = Lux.setup(default_rng(), node)
        terminal(ps) = sum(abs2, last(first(node(x, ps, nst)).u))
        g = only(Zygote.gradient(terminal, nps)).θ
        h = 1e-6
        for i in eachindex(θ)
            up, down = copy(θ), copy(θ)
            up[i] += h
            down[i] -= h
            @test g[i] ≈ (terminal((; θ = up)) - terminal((; θ = down))) / 2h rtol = 1e-6
        end
    end
end
