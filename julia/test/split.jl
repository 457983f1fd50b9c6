# Split fields against their sum, and what is evaluated of which part.

@testset "split field: $solver" for (solver, stages) in (("KenCarp3", 4), ("KenCarp4", 6), ("KenCarp5", 8))
    θs = [0.4, -0.7, 0.6, 0.5], [-0.3, 0.8, 0.2, -0.9]
    whole = sample_field(Float64, 3)
    stiff, nonstiff = (PyNODE.bind!(sample_field(Float64, 3; products = :split), θ) for θ in θs)
    split = PyNODE.Split(stiff, nonstiff, 0)
    u0, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.0, 0.31, 0.74, 1.2]
    values = zeros(6, 4)
    options = Options(; solver, rtol = 1e-8, atol = 1e-10, dt = 0.5, split)
    summary, kept = forward!(values, whole, u0, ts, θs[1], options)
    @test kept === nothing && summary.outcome === PyNODE.success && summary.rejected > 0
    f!(du, u, p, t) = (du .= exact_field(u, θs[1], t) .+ exact_field(u, θs[2], t); nothing)
    problem = PyNODE.ODEProblem(f!, u0, (0.0, 1.2))
    exact = PyNODE.solve!(PyNODE.init(problem, PyNODE.Vern9(); reltol = 1e-12, abstol = 1e-12))
    @test values ≈ reduce(hcat, exact.(ts)) atol = 1e-6
    # The Jacobian is that of the stiff part; the other is evaluated once a stage, and at the start.
    @test stiff.counts[2] > 0 && nonstiff.counts[2] == 0
    @test nonstiff.counts[1] <= stages * (summary.accepted + summary.rejected) + 3
    @test PyNODE.evaluations(whole, split) == stiff.counts[1] + nonstiff.counts[1] && whole.counts[1] == 0
    # A step that is rejected begins with the rate of the stiff part again.
    @test split.begun_again >= summary.rejected
end
