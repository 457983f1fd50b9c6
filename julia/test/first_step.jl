using PyNODE: EXPLICIT, ODEProblem, RootMeanSquare, Unstable, algorithm, first_step, init, ode_function, sum_shared

"OrdinaryDiffEq's own first step."
function usual_step(field, u0, ts, o)
    problem = ODEProblem{true}(ode_function(field, o.solver), u0, (first(ts), last(ts)), field.θ)
    return init(problem, algorithm(o.solver); reltol = eltype(u0)(o.rtol), abstol = eltype(u0)(o.atol), verbose = false).dt
end

own_step(field, u0, ts, o) = first_step(field, algorithm(o.solver), u0, ts, o)

@testset "the first step is OrdinaryDiffEq's: $solver, $T" for solver in filter(s -> !(s in ("Euler", "Midpoint", "RK4", "Heun")), EXPLICIT), T in (Float32, Float64)
    field, o = sample_field(T, 3), Options(; solver, rtol = 1e-5, atol = 1e-7)
    PyNODE.bind!(field, T[0.4, -0.7, 0.6, 0.5])
    states = (T[0.3, -0.2, 0.5, 0.1, -0.4, 0.2], zeros(T, 6), fill(T(1e-9), 6), fill(T(1e6), 6))
    for u0 in states, ts in ([0.0, 1.2], [1.2, -3.0], [0.0, 1e-7], [1e6, 1e6 + 1], [5.0, 5.0 + 1e-12])
        @test own_step(field, u0, ts, o) ≈ usual_step(field, u0, ts, o) rtol = (T === Float32 ? 1e-4 : 1e-9)
    end
end

@testset "the first step of fields that do not change, or are not finite" begin
    field, o = sample_field(Float64, 1), Options(; solver = "Tsit5", rtol = 1e-5, atol = 1e-7)
    PyNODE.bind!(field, zeros(4))
    ts = [π / 2, π / 2 + 1]  # the sine has no slope there
    @test own_step(field, [0.3, 0.2], ts, o) ≈ usual_step(field, [0.3, 0.2], ts, o) rtol = 1e-6
    PyNODE.bind!(field, fill(NaN, 4))
    @test own_step(field, [0.3, 0.2], [1.0, 0.0], o) == usual_step(field, [0.3, 0.2], [1.0, 0.0], o) == -nextfloat(eps(1.0))
end

@testset "the first step takes no memory" begin
    field, o, u0, ts = sample_field(Float64, 50_000), Options(; solver = "Tsit5"), fill(0.1, 100_000), [0.0, 1.0]
    PyNODE.bind!(field, [0.4, -0.7, 0.6, 0.5])
    own_step(field, u0, ts, o)
    @test (@allocated own_step(field, u0, ts, o)) < 10_000
end

@testset "sums of a whole state are the same whatever the threads, $T" for T in (Float32, Float64)
    x = T[sin(i) for i in 1:300_001]
    sums = [sum_shared((a, b) -> a * b + a, threads, length(x), x, reverse(x)) for threads in (1, 2, 3)]
    @test allequal(sums)
    @test sums[1] ≈ sum(Float64.(x) .* reverse(Float64.(x)) .+ x) rtol = 1e-12
    @test RootMeanSquare(1)(x, 0.0) ≈ sqrt(sum(abs2, Float64.(x)) / length(x)) rtol = 1e-6
    @test RootMeanSquare(1)(x, 0.0) == RootMeanSquare(2)(x, 0.0)
    @test RootMeanSquare(1)(T[], 0.0) == 0
    for threads in (1, 2), (i, bad) in ((1, NaN), (150_000, Inf), (300_001, -Inf))
        y = copy(x)
        @test !Unstable(threads)(0.1, y, nothing, 0.0)
        y[i] = bad
        @test Unstable(threads)(0.1, y, nothing, 0.0)
    end
end
