using StochasticDiffEq: StochasticDiffEq
using Statistics: mean, var

const STOCHASTIC = Base.get_extension(PyNODE, :PyNODEStochasticExt)

# An SDE of the sample field for drift and, with another W, for a diagonal diffusion.
function sample_equation(T, batch)
    f, g = sample_field(T, batch), sample_field(T, batch)
    bindings = (T[0.2, -0.4, 0.3, 0.1], T[-0.1, 0.3, 0.2, 0.4])
    foreach((field, θ) -> PyNODE.bind!(field, θ), (f, g), bindings)
    return STOCHASTIC.Equation(f, g, 2batch, 0, batch)
end

request(solver; stratonovich = false, adaptive = false, seed = 1) =
    STOCHASTIC.Request(solver, stratonovich, adaptive, :discrete, 1000, seed, 1e-2, 1e-2, 0.1)

const METHODS = [(s, false) for s in PyNODE.STOCHASTIC_SOLVERS if s != "EulerHeun"]

@testset "steps of $solver, taken again" for (solver, stratonovich) in [METHODS; ("RKMil", true); ("EulerHeun", true)],
    T in (Float32, Float64), adaptive in (false, true)

    adaptive && solver in ("EM", "EulerHeun") && continue
    e = sample_equation(T, 3)
    ts, u0 = [0.0, 0.35, 1.0], T[0.1, -0.2, 0.3, 0.5, -0.6, 0.7]
    values = zeros(T, 6, 3)
    q = request(solver; stratonovich, adaptive)
    summary, path = STOCHASTIC.solve!(values, e, copy(u0), ts, q)
    @test summary.outcome === PyNODE.success
    @test adaptive || summary.accepted == 4 + 7
    kept = STOCHASTIC.StochasticSolve(e, (copy(e.drift.θ), copy(e.diffusion.θ)), (e.drift.counts[3], e.diffusion.counts[3]), q, path, 3)
    pull = STOCHASTIC.Pull(kept)
    states = [reshape(path.u, 6, :) values[:, end]]
    for n in eachindex(path.h)
        h = STOCHASTIC.retake!(pull, path, n)
        u = STOCHASTIC.state!(zeros(T, 6), pull, pull.tab.last, pull.u, T(h))
        @test u ≈ states[:, n + 1] rtol = 100eps(T) atol = 100eps(T)
    end
    STOCHASTIC.record!(e, false)
    @test STOCHASTIC.solve!(zeros(T, 6, 3), e, copy(u0), ts, q)[2].dW == path.dW
    @test STOCHASTIC.solve!(zeros(T, 6, 3), e, copy(u0), ts, request(solver; stratonovich, adaptive, seed = 2))[2].dW != path.dW
end

@testset "what is drawn" begin
    for adaptive in (false, true)
        noise = STOCHASTIC.brownian(Float64, 0.0, 10_002, 10_000, true, 4, adaptive)
        noise.dt = 0.25
        StochasticDiffEq.DiffEqNoiseProcess.setup_next_step!(noise, nothing, nothing)
        for x in (noise.dW, noise.dZ)
            @test iszero(x[10_001:end])
            @test var(x[1:10_000]) ≈ 0.25 rtol = 0.06
        end
        @test abs(mean(noise.dW .* noise.dZ)) < 0.01
    end
    # A step of length 1 that is cut to a quarter: what remains of it is independent of what is taken.
    noise = STOCHASTIC.brownian(Float64, 0.0, 10_000, 10_000, false, 4, true)
    noise.dt = 1.0
    process = StochasticDiffEq.DiffEqNoiseProcess
    process.setup_next_step!(noise, nothing, nothing)
    whole = copy(noise.dW)
    process.reject_step!(noise, 0.25, nothing, nothing)
    part = copy(noise.dW)
    @test var(part) ≈ 0.25 rtol = 0.06
    @test abs(mean(part .* (whole .- part))) < 0.02
    process.accept_step!(noise, 0.75, nothing, nothing)
    @test noise.dW ≈ whole .- part
    process.reject_step!(noise, 0.25, nothing, nothing)
    @test var(noise.dW) ≈ 0.25 rtol = 0.06
end

@testset "matrices of samples" begin
    G = STOCHASTIC.Blocks(collect(1.0:12.0), 3, 4, 2)  # two samples of two features, three channels
    x, y, λ = collect(1.0:6.0), zeros(5), [1.0, -2.0, 3.0, 0.5, 7.0]
    dense = zeros(5, 6)
    dense[1, 1:3], dense[2, 1:3], dense[3, 4:6], dense[4, 4:6] = 1:3, 4:6, 7:9, 10:12
    @test mul!(y, G, x) == dense * x
    @test STOCHASTIC.add_product!(ones(5), G, x, 2.0) == 1 .+ 2 .* (dense * x)
    Ḡ = STOCHASTIC.add_cotangent!(STOCHASTIC.Blocks(zeros(12), 3, 4, 2), λ, x, 2.0)
    @test Ḡ.entries == 2 .* [λ[1] .* x[1:3]; λ[2] .* x[1:3]; λ[3] .* x[4:6]; λ[4] .* x[4:6]]
end
