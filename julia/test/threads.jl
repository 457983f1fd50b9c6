# Operations on large arrays that the threads share, beside the same by one.

using LinearAlgebra: BLAS
using PyNODE: Kernel, Workspace, threads_within

# dz/dt of an image of two channels, `(height, width)`: a stencil of slices, a factor for each channel, and a convolution.
const STENCIL = graph(
    ["t", "z", "parameter", "parameter", "cotangent"],
    let image = [[1, 0], 2, 600, 500], conv = (stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 1)
        part(i, start, stop) = node("slice", [i], [[1, 0], 2, stop - start, 500]; dim = 2, start, stop, step = 1)
        [
            input(0, []), input(1, image), input(2, [2, 1, 1]), input(3, [8, 2, 3, 3]), input(4, image),
            part(1, 1, 600), part(1, 0, 1),
            node("cat", [5, 6], image; dim = 2),                           # 7: each row's next
            node("sub", [7, 1], image),
            node("mul", [8, 2], image),
            node("tanh", [9], image),                                      # 10
            node("conv", [1, 3], [[1, 0], 8, 600, 500]; conv...),          # 11
            node("sin", [11], [[1, 0], 8, 600, 500]),
            node("conv_input", [12, 3], image; conv...),                   # 13
            node("mul", [13, 0], image),
            node("add", [10, 14], image),                                  # 15: value
            node("mul", [4, 10], image),
            node("sum", [16], [2]; dims = [0, 2, 3], keepdim = false),
            node("reshape", [17], [2, 1, 1]; shape = [2, 1, 1]),           # 18: of the factors, as it were
            node("conv_weight", [4, 12], [8, 2, 3, 3]; conv...),           # 19: of the weights, likewise
            node("mul", [4, 13], image),
            node("sum", [20], []; dims = [0, 1, 2, 3], keepdim = false),   # 21: of the time
        ]
    end,
    [15],
    [21, 16, 18, 19],
)

# The value and the products of a kernel on a batch, and how many of its operations the threads share.
function of_kernel(k::Kernel{T}, batch, u, θ, v) where {T}
    w = Workspace(k, batch)
    copyto!(w.u, u), copyto!(w.θ, θ), copyto!(w.v, v)
    foreach(p -> PyNODE.bind(w, p)(T(0.3)), (k.prologue, k.value, k.vjp))
    buffers = reduce(vcat, values(w.scratch))
    loops = count(b -> b isa PyNODE.RuntimeGeneratedFunctions.RuntimeGeneratedFunction, buffers)
    convolutions = count(b -> b isa PyNODE.Rows && !isempty(b.others), buffers)
    return map(copy, (w.du, w.dz, w.dθ, w.dt)), loops, convolutions
end

@testset "large operations on several threads, $T, batch $batch" for T in (Float64, Float32), batch in (1, 2)
    n = 2 * 600 * 500 * batch
    u, θ, v = (T.(draw(m)) for m in (n, 2 + 8 * 2 * 9, n + 1))
    v = v[1:n]
    expected, loops, convolutions = of_kernel(Kernel{T}(STENCIL), batch, u, θ, v)
    @test loops == convolutions == 0
    for threads in (2, 3)
        found, loops, convolutions = of_kernel(Kernel{T}(STENCIL; batch, threads), batch, u, θ, v)
        @test loops > 3
        @test convolutions > 1
        @test found[1] == expected[1]  # no sum is taken in another order
        @test all(isapprox.(found, expected; rtol = 100eps(T)))
    end
end

@testset "products of operations that the threads share have one thread of BLAS" begin
    kernel, seen, before = Kernel{Float32}(STENCIL), Int[], BLAS.get_num_threads()
    look(_, t, batch) = push!(seen, BLAS.get_num_threads())
    BLAS.set_num_threads(2)
    try
        for (threads, alone) in ((1, false), (2, true))
            w = PyNODE.make_field(kernel, 1, :joint, PyNODE.Processor(), threads).tape.workspace
            bound = PyNODE.bind(w, w.kernel.value)
            @test bound.alone == w.alone == alone
            PyNODE.Bound(look, (), 1, bound.alone)(0f0)
            @test BLAS.get_num_threads() == 2
        end
    finally
        BLAS.set_num_threads(before)
    end
    @test seen == [2, 1]
end

# By columns or by rows of the result, which are more; of matrices and of transposed ones.
@testset "products that the threads share, $m × $k × $n, $T" for (m, k, n) in ((40, 300, 500), (500, 300, 40), (4, 5, 6)), T in (Float32, Float64)
    a, b = (reshape(T.(draw(x * y)), x, y) for (x, y) in ((m, k), (k, n)))
    turned(x) = transpose(permutedims(x))
    for x in (a, turned(a)), y in (b, turned(b)), add in (false, true), threads in (2, 3)
        c = ones(T, m, n)
        PyNODE.multiply!(threads, c, x, y, add)
        @test c ≈ a * b .+ add rtol = 100eps(T)
    end
end

@testset "what one thread does is no loss" begin
    crowd, ran = PyNODE.CROWD, Ref(0)
    @atomic crowd.together = 0
    @atomic crowd.until = 0
    PyNODE.on_threads(i -> ran[] += i, 1)
    @test ran[] == 1
    @test (@atomic crowd.together) == 0
end

@testset "what the threads share" begin
    k = Kernel{Float32}(STENCIL)
    @test threads_within(k, 1, 1) == 1
    @test threads_within(k, 1, 2) == 2
    @test threads_within(k, 2, 4) == 4
    @test threads_within(k, 4, 2) == 1  # a thread has samples of its own
    small = Kernel{Float32}(PERCEPTRON)
    @test threads_within(small, 1, 4) == 1
end

@testset "sums of a large state on several threads, $solver, $T" for
    (solver, T) in (("Tsit5", Float32), ("DP5", Float64), ("Vern7", Float32), ("DP8", Float64), ("RK4", Float32), ("Euler", Float64))

    batch, ts = 45_000, [0.0, 0.3, 0.5]
    fields = [TracedField(Workspace(sample_kernel(T), batch); threads) for threads in (1, 3)]
    @test [f.threads for f in fields] == [1, 3]
    @test sample_field(T, 10).threads == 1
    u, θ, g = T.(draw(2batch)), T[0.5, -0.3, 0.2, 0.4], reshape(T.(draw(6batch)), :, 3)
    adaptive = !(solver in ("Euler", "Midpoint", "Heun", "RK4"))
    unset = ntuple(_ -> NaN, 5)
    control = PyNODE.StepControl(nothing, unset..., nothing, nothing, fill(1e-5, 2batch))
    for keep in (:ends, :stages, :dense), control in (adaptive && keep === :ends ? (nothing, control) : (nothing,))
        o = Options(; solver, rtol = 1e-4, atol = 1e-5, adaptive, dt = adaptive ? 0.0 : 0.1, keep, control)
        (one, several) = map(fields) do field
            values = zeros(T, 2batch, 3)
            _, kept = forward!(values, field, copy(u), ts, θ, o)
            keep === :stages || return (values,)
            found = discrete_pullback(kept, g)
            return values, copy(found.u0), copy(found.θ)
        end
        @test one == several  # no sum is taken in another order
    end
    alg = PyNODE.algorithm(solver; threads = 3)
    @test solver == "Euler" || alg.thread === PyNODE.Team(3)
end

@testset "a team takes vectors of one length, and leaves other broadcasts to one thread" begin
    team, n = PyNODE.Team(2), 100_000
    x, y, to = draw(n), draw(n), zeros(n)
    backwards = view(y, n:-1:1)
    PyNODE.@.. broadcast = false thread = team to = muladd(2, x, muladd(Ref(0.5), y, abs(x - y)))
    @test to == muladd.(2, x, muladd.(0.5, y, abs.(x .- y)))
    PyNODE.@.. broadcast = false thread = team to = x + backwards
    @test to == x .+ reverse(y)
    PyNODE.@.. broadcast = false thread = team to = 0.5
    @test all(==(0.5), to)
    @test_throws DimensionMismatch PyNODE.@.. broadcast = false thread = team to = x + y[1:10]
    @test_throws DimensionMismatch PyNODE.add_shared!(to, x[1:10], 2)
    norm = PyNODE.OrdinaryDiffEqCore.ODE_DEFAULT_NORM
    errors(f) = Base.Broadcast.broadcasted(PyNODE.DiffEqBase.calculate_residuals, x, y, y, 1e-3, 1e-3, Ref(f), 0.0)
    @test all(f -> PyNODE.fits(errors(f), n), (norm, PyNODE.max_norm))  # the errors of a step are shared
end

@testset "reductions on several threads" begin
    x = draw(300, 20, 7)
    for (f!, shape) in ((sum!, (1, 1, 7)), (maximum!, (300, 1, 7)), (sum!, (300, 20, 1)), (prod!, (1, 1, 7)))
        @test PyNODE.reduce_shared!(3, f!, fill(NaN, shape), x) == f!(fill(NaN, shape), x)
    end
    @test PyNODE.reduce_shared!(3, sum!, JLArray(fill(NaN, 1, 1, 7)), JLArray(x)) isa JLArray
end

@testset "a large state is not copied: the program reads and writes a solver's own vectors" begin
    n = PyNODE.WORTH_BINDING
    row, part = [[1, 0], n], (dim = 1, step = 1)
    g = graph(
        ["t", "z", "cotangent"],
        [
            input(0, []), input(1, row), input(2, row),
            node("slice", [1], [[1, 0], n - 1]; part..., start = 1, stop = n),
            node("embed", [3], row; part..., start = 0, stop = n - 1),
            node("full", [Dict("number" => 0.0)], []),
        ],
        [4], [5, 2],
    )
    field = TracedField(Workspace(Kernel{Float64}(g), 1))
    u, du = draw(n), fill(NaN, n)
    PyNODE.value!(du, field, u, 0.0)
    @test du == [u[2:end]; 0]  # all of it, whatever lay there
    @test length(field.direct) == 1
    for _ in 1:(3 * PyNODE.MOST_DIRECT)
        v = draw(n) .+ rand()
        PyNODE.value!(du, field, v, 0.0)
        @test du == [v[2:end]; 0]
    end
    @test length(field.direct) <= PyNODE.MOST_DIRECT
    @test all(iszero, field.u) && all(iszero, field.du)
    PyNODE.value!(du, field, u, 0.0)
    @test (@allocated PyNODE.value!(du, field, u, 0.0)) == 0
end

@testset "each part is done once, and a failure ends the rest" begin
    for n in (1, 2, 5), _ in 1:200
        done = zeros(Int, n)
        PyNODE.on_threads((i, done) -> done[i] += 1, n, done)
        @test all(==(1), done)
    end
    for bad in 1:4, _ in 1:200
        done = zeros(Int, 4)
        fails(i, done) = (done[i] += 1; i == bad && throw(ArgumentError("part $i")); nothing)
        @test_throws ArgumentError("part $bad") PyNODE.on_threads(fails, 4, done)
        @test done[bad] == 1 && maximum(done) == 1
    end
end

@testset "the first run of a kind of work, which is compiled then, is not judged by its time" begin
    before = PyNODE.CROWD.together
    slow = i -> (sleep(0.01); nothing)
    PyNODE.on_threads(slow, 2)
    @test PyNODE.CROWD.together == before
    PyNODE.on_threads(slow, 2)
    @test PyNODE.CROWD.together != before || PyNODE.CROWD.until > 0
end

@testset "work is not shared for a while where that was a loss" begin
    crowd = PyNODE.Crowd(0, 0, PyNODE.FIRST_PAUSE, 0)
    for _ in 1:3
        PyNODE.judge!(crowd, 2 * PyNODE.ROUND, PyNODE.ROUND)
    end
    @test crowd.until == 0  # it was a gain
    PyNODE.judge!(crowd, PyNODE.ROUND ÷ 4, PyNODE.ROUND ÷ 2)
    @test crowd.until == 0  # too little to tell
    pauses = map(1:6) do _
        PyNODE.judge!(crowd, PyNODE.ROUND ÷ 2, PyNODE.ROUND)
        Int(crowd.until - time_ns())
    end
    @test all(<=(PyNODE.LONGEST_PAUSE), pauses)
    @test issorted(pauses[1:4])
    @test pauses[1] > PyNODE.FIRST_PAUSE ÷ 2
    PyNODE.judge!(crowd, 2 * PyNODE.ROUND, PyNODE.ROUND)
    @test crowd.pause == PyNODE.FIRST_PAUSE
end
