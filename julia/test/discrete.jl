using ForwardDiff: ForwardDiff
using JLArrays: JLArray, JLArrays

JLArrays.allowscalar(false)

# The steps of a solve again, in plain code over any number type: the same coefficients, and the same step sizes from
# each time that the solver landed on to the next, the last step cut to land there.
function grid_of(fw, ts)
    stops = PyNODE.lands_on_times(fw.options) ? eachindex(ts) : [1, length(ts)]
    grid = similar(ts, length(fw.steps.t))
    for (a, b) in zip(stops[1:(end - 1)], stops[2:end]), (n, t) in enumerate(fw.steps.t)
        fw.ts[a] <= t < fw.ts[b] && (grid[n] = ts[a] + (t - fw.ts[a]))
        t == fw.ts[b] && (grid[n] = ts[b])
    end
    return grid
end

function replay(fw, tab, u0, θ, ts)
    grid, old = grid_of(fw, ts), fw.steps.t
    u = u0 .+ zero(eltype(θ)) .+ zero(eltype(ts))
    saved = [u]
    for n in 1:(length(grid) - 1)
        t, h = grid[n], grid[n + 1] - grid[n]
        k = typeof(u)[]
        for i in 1:(tab.s)
            Y = u + h * sum((tab.A[i, j] * k[j] for j in 1:(i - 1)); init = zero(u))
            push!(k, exact_field(Y, θ, t + tab.c[i] * h))
        end
        for (i, τ) in enumerate(fw.ts)
            old[n] < τ < old[n + 1] || continue
            w = [sum(tab.W[j, m] * ((ts[i] - t) / h)^(m - 1) for m in axes(tab.W, 2)) for j in 1:(tab.s)]
            push!(saved, u + h * sum(w[j] * k[j] for j in 1:(tab.s)))
        end
        u = u + h * sum(tab.b[i] * k[i] for i in 1:(tab.s))
        old[n + 1] in fw.ts && push!(saved, u)
    end
    return reduce(hcat, saved)
end

@testset "discrete adjoint of $solver" for solver in PyNODE.EXPLICIT
    field = sample_field(Float64, 3)
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 0.74, 1.2]
    adaptive = !(solver in ("Euler", "Midpoint", "RK4"))
    options = Options(; solver, rtol = 1e-5, atol = 1e-7, dt = adaptive ? 0.0 : 0.25, adaptive, keep = :stages)
    values = zeros(6, 4)
    _, fw = forward!(values, field, u0, ts, θ, options)
    tab = PyNODE.tableau(solver, Float64)
    @test replay(fw, tab, u0, θ, ts) ≈ values rtol = 1e-12
    g = reshape(sin.(1.0:24.0), 6, 4)
    c = discrete_pullback(fw, g)
    loss(u, p, τ) = dot(g, replay(fw, tab, u, p, τ))
    @test c.u0 ≈ ForwardDiff.gradient(u -> loss(u, θ, ts), u0) rtol = 1e-12
    @test c.θ ≈ ForwardDiff.gradient(p -> loss(u0, p, ts), θ) rtol = 1e-12
    @test c.ts ≈ ForwardDiff.gradient(τ -> loss(u0, θ, τ), ts) rtol = 1e-10
end

@testset "bounded memory: $solver" for solver in ("Tsit5", "DP5", "Vern7", "RK4")
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 0.74, 1.2]
    g = reshape(sin.(1.0:24.0), 6, 4)
    function pull(memory)
        field = sample_field(Float64, 3)
        options = Options(; solver, rtol = 1e-8, atol = 1e-9, dt = solver == "RK4" ? 0.01 : 0.0, adaptive = solver != "RK4", keep = :stages, memory)
        _, fw = forward!(zeros(6, 4), field, u0, ts, θ, options)
        return discrete_pullback(fw, g), fw.steps
    end
    all, kept = pull(2^30)
    @test kept.every == 0 && all.ts != zeros(4)
    for memory in (1500, 5000, 30_000)
        few, steps = pull(memory)
        @test (steps.every > 0) == (memory < 30_000 || solver == "RK4")
        @test length(steps.checkpoints) * sizeof(u0) <= memory
        @test few.u0 ≈ all.u0 rtol = 1e-12
        @test few.θ ≈ all.θ rtol = 1e-12
        @test few.ts ≈ all.ts rtol = 1e-10
    end
end

# Of large stages that are kept, nothing but the gradient in the times reads the values.
@testset "stages without values: $solver, memory $memory" for solver in ("Tsit5", "DP5", "Vern7", "RK4"), memory in (2^30, 100_000)
    u0, θ, ts = sin.(1.0:400.0) ./ 2, [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 0.74, 1.2]
    g = reshape(sin.(1.0:1600.0), 400, 4)
    adaptive = solver != "RK4"
    field = sample_field(Float64, 200)
    found = map((true, false, true)) do wants_t  # stages of the one kind are not the other's to use again
        dt = adaptive ? 0.0 : 0.01
        options = Options(; solver, rtol = 1e-8, atol = 1e-9, dt, adaptive, keep = :stages, memory, wants_t)
        _, fw = forward!(zeros(400, 4), field, u0, ts, θ, options)
        stages = fw.steps.stages.stages
        @test isempty(stages) == (fw.steps.every > 0)
        @test all(stage -> length(stage.k) == (wants_t ? 400 : 0), stages)
        @test all(stage -> stage.bytes == sizeof(stage.u) + sizeof(stage.k) + stage.heavy * field.tape.bytes, stages)
        wants_t || @test_throws ArgumentError discrete_pullback(fw, g)
        c = deepcopy(discrete_pullback(fw, g; wants_t))
        PyNODE.give_back!(fw)
        c
    end
    @test found[2].u0 ≈ found[1].u0 rtol = 1e-14
    @test found[2].θ ≈ found[1].θ rtol = 1e-14
    @test found[2].ts == zeros(4)
    @test found[3].ts == found[1].ts != zeros(4)
end

# 40 stages, of 3200 bytes and as many with values, some with residuals too.
@testset "what fits the memory" for wants_t in (true, false)
    how = (; solver = "RK4", dt = 0.1, adaptive = false, keep = :stages, memory = 200_000)
    u0, θ = sin.(1.0:400.0) ./ 2, [0.4, -0.7, 0.6, 0.5]
    _, fw = forward!(zeros(400, 2), sample_field(Float64, 200), u0, [0.0, 1.0], θ, Options(; how..., wants_t))
    @test (fw.steps.every > 0) == wants_t
end

# A whole solve and its pullback where the arrays are a GPU's, so to speak: no entry is read or written by itself.
@testset "arrays without scalar indexing, $solver" for solver in ("Tsit5", "RK4", "Vern7", "DP8"), memory in (2^30, 1500)
    adaptive = solver != "RK4"
    options = Options(; solver, rtol = 1e-6, atol = 1e-8, dt = adaptive ? 0.0 : 0.05, adaptive, keep = :stages, memory)
    u0, θ, ts = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.4, -0.7, 0.6, 0.5], [0.0, 0.31, 0.74, 1.2]
    g = reshape(sin.(1.0:24.0), 6, 4)
    found = map((Float64[], JLArray(Float64[]))) do like
        on(x) = copyto!(similar(like, Float64, size(x)), x)
        field = TracedField(Workspace(sample_kernel(Float64), 3, like))
        values = on(zeros(6, 4))
        summary, solved = forward!(values, field, on(u0), ts, on(θ), options)
        c = discrete_pullback(solved, on(g))
        (summary.accepted, Array(values), Array(c.u0), Array(c.θ), c.ts)
    end
    @test found[1][1] == found[2][1]
    @test all(isapprox(a, b; rtol = 1e-9) for (a, b) in zip(found...))
end

@testset "what is kept of a small state's stages is their numbers: $solver" for solver in ("Tsit5", "RK4", "VelocityVerlet")
    field, options = sample_field(Float64, 1), Options(; solver, dt = 1e-3, adaptive = false, keep = :stages)
    tape, θ = field.tape, [0.4, -0.7, 0.6, 0.5]
    solve() = forward!(zeros(2, 2), field, [0.3, -0.2], [0.0, 1.0], θ, options)[2]
    fw = solve()
    stages = length(fw.steps.stages)
    @test stages >= 1000
    @test isempty(fw.steps.stages.stages)
    @test sum(length, fw.steps.stages.chunks) <= stages * tape.size + PyNODE.CHUNK
    @test sum(length, tape.spare) <= 20  # a step's
    found = copy(discrete_pullback(fw, ones(2, 2)).θ)
    chunks = length(fw.steps.stages.chunks)
    PyNODE.give_back!(fw)
    @test length(tape.chunks) == chunks
    again = solve()
    @test isempty(tape.chunks)
    @test discrete_pullback(again, ones(2, 2)).θ == found
end

@testset "memory that other fields hold goes to one that was refused some" begin
    fields = [sample_field(Float64, batch) for batch in (200, 300, 400)]
    tapes = [f.tape for f in fields]
    options = Options(; solver = "RK4", dt = 0.1, adaptive = false, keep = :stages)
    before = PyNODE.SPARE[]
    for f in fields
        n = length(f.u)
        PyNODE.give_back!(forward!(zeros(n, 2), f, zeros(n), [0.0, 1.0], zeros(4), options)[2])
    end
    held = map(PyNODE.spare, tapes)
    @test issorted(held) && first(held) > 0
    @test PyNODE.SPARE[] - before == sum(held)
    PyNODE.make_room!(tapes[1], tapes)
    @test map(PyNODE.spare, tapes) == held
    filled = PyNODE.MAX_SPARE - PyNODE.SPARE[]
    Threads.atomic_add!(PyNODE.SPARE, filled)
    stage = pop!(PyNODE.free_stages(tapes[1], true, true))
    @test !PyNODE.claim!(tapes[1], stage.bytes)
    PyNODE.make_room!(tapes[1], tapes)
    @test PyNODE.spare(tapes[1]) == held[1] - stage.bytes && map(PyNODE.spare, tapes[2:3]) == [0, 0]
    @test PyNODE.claim!(tapes[1], stage.bytes)
    push!(PyNODE.free_stages(tapes[1], true, true), stage)
    Threads.atomic_sub!(PyNODE.SPARE, filled + stage.bytes)
    PyNODE.discard!(tapes[1])
    @test PyNODE.SPARE[] == before
end

@testset "an integrator that is taken again steps as a new one: $solver" for solver in ("Euler", "Midpoint", "Heun", "RK4", "Tsit5")
    field, θ, fixed = sample_field(Float64, 2), [0.4, -0.7, 0.6, 0.5], solver != "Tsit5"
    solved(field, u0, ts; max_steps = 1000) = begin
        values = zeros(4, length(ts))
        options = Options(; solver, dt = fixed ? 0.07 : 0.0, adaptive = !fixed, rtol = 1e-6, atol = 1e-8, keep = :ends, max_steps)
        summary, _ = forward!(values, field, u0, ts, θ, options)
        (values, summary.outcome, summary.reached, summary.accepted, summary.rejected)
    end
    spans = ([0.0, 1.0], [0.0, 0.35], [0.3, 0.31, 1.7], [1.0, 0.2, -0.4], [0.0, 0.07, 0.14], [-5.0, 5.0], [2.0, 1.0], [0.0, 1.0])
    for (i, ts) in enumerate(spans), max_steps in (1000, 4)  # of which many solves stop on the way
        u0 = [0.1i, -0.2, 0.3, 0.4]
        @test isequal(solved(field, u0, ts; max_steps), solved(sample_field(Float64, 2), u0, ts; max_steps))
    end
    @test length(field.integrators) == 4
    broken = solved(field, fill(NaN, 4), [0.0, 1.0])
    @test broken[2] !== PyNODE.success
    @test isequal(solved(field, ones(4), [0.0, 1.0]), solved(sample_field(Float64, 2), ones(4), [0.0, 1.0]))
end

@testset "steps that end within a hundred roundings of the last time: $solver from $start" for solver in ("Tsit5", "Midpoint", "Vern7"), start in (0.0, 1.7e9)
    field, θ = sample_field(Float64, 1), [0.4, -0.7, 0.6, 0.5]
    fixed = solver == "Midpoint"
    for span in (1e-4, 2e-5, 5e-6)  # a rounding around 1.7e9 is 2.4e-7
        ts = [start, start + span]
        options = Options(; solver, dt = fixed ? 2e-6 : 0.4span, adaptive = !fixed, rtol = 1e-9, atol = 1e-12, keep = :stages)
        u0, values = [0.3, -0.2], zeros(2, 2)
        summary, fw = forward!(values, field, u0, ts, θ, options)
        @test summary.outcome === PyNODE.success
        moved = (values[:, 2] - u0) ./ (exact_field(u0, θ, start) * (ts[2] - ts[1]))
        @test all(x -> isapprox(x, 1; rtol = 2e-3), moved)
        products = discrete_pullback(fw, [0.0 1.0; 0.0 0.0]).u0
        @test isapprox(products, [1.0, 0.0]; atol = 2e-3)
    end
end

@testset "a gradient is computed in the memory of the last one: $solver" for solver in ("Tsit5", "VelocityVerlet")
    field, θ = sample_field(Float64, 1000), [0.4, -0.7, 0.6, 0.5]
    u0, ts = sin.(1.0:2000.0), [0.0, 0.4, 1.0]
    adaptive = solver == "Tsit5"
    options = Options(; solver, dt = adaptive ? 0.0 : 0.1, adaptive, keep = :stages)
    solve(u, ts) = forward!(zeros(2000, length(ts)), field, u, ts, θ, options)[2]
    gradients = map((false, true)) do anew
        map((u0, 2u0, u0), (ts, [0.0, 1.0], ts)) do u, ts
            anew && empty!(field.pulls)
            fw = solve(u, ts)
            g = [cos(i * j) for i in 1:2000, j in eachindex(ts)]
            c = deepcopy(discrete_pullback(fw, g))
            PyNODE.give_back!(fw)
            c
        end
    end
    @test all(a.u0 == b.u0 && a.θ == b.θ && a.ts == b.ts for (a, b) in zip(gradients...))
    @test length(field.pulls) == 1
    fw, g = solve(u0, ts), ones(2000, 3)
    discrete_pullback(fw, g)
    @test (@allocated discrete_pullback(fw, g)) < sizeof(u0)
    held = PyNODE.bytes_held(field)
    empty!(field.pulls)
    @test held - PyNODE.bytes_held(field) > 3sizeof(u0)
end
