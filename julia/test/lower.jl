# Lowering: graphs written by hand against plain Julia, on arrays with and without scalar indexing.

using JLArrays: JLArray, JLArrays
using Random: Xoshiro

JLArrays.allowscalar(false)

# NNlib knows the matrix products of no JLArray.
const NNlib = parentmodule(PyNODE.batched_mul!)
function NNlib._batched_gemm!(::Type{<:JLArray}, a::Char, b::Char, α::Number, A, B, β::Number, C)
    turned(x, letter) = letter == 'T' ? NNlib.batched_transpose(x) : x
    return NNlib.batched_mul_generic!(C, turned(A, a), turned(B, b), α, β)
end

# ---- graphs ---------------------------------------------------------------------------------------------------

# Nodes and dimensions are PyTorch's: nodes count from 0, shapes are `(batch, features)`, `[1, 0]` is the batch.
node(op, in, shape; dtype = "float", attrs...) =
    Dict("op" => op, "in" => in, "shape" => shape, "dtype" => dtype, "attrs" => Dict(attrs))
input(index, shape) = node("input", [], shape; index)

function graph(kinds, nodes, value = [], vjp = [])
    inputs = [
        Dict("kind" => kind, "name" => "$i", "shape" => nodes[i]["shape"]) for (i, kind) in enumerate(kinds)
    ]
    data = Dict("version" => 1, "batch" => nothing, "inputs" => inputs, "nodes" => nodes, "value" => value, "vjp" => vjp)
    return PyNODE.Graph(PyNODE.JSON.json(data))
end

# Graphs that were run on arrays without scalar indexing, with the sizes of these and of the batch.
const RUN = Any[]

# The last node of a graph for these inputs, each `(features..., batch)`, which are arrays like `like`.
function run_graph(g, arrays, like, batch)
    n = length(arrays)
    program = PyNODE.lower(g, Float64, Dict(i => i for i in 1:n), n, [length(g.nodes) => nothing])
    buffers = collect(Any, arrays)
    foreach(s -> push!(buffers, s.make(like, batch, buffers)), program.specs)
    program.run(Tuple(buffers), 0.5, batch)
    program.run(Tuple(buffers), 0.5, batch)  # nothing is left over from the first run
    return buffers[only(program.outputs)]
end

function evaluate(g, arrays, like = Float64[]; batch = size(last(arrays), ndims(last(arrays))))
    like isa JLArray && push!(RUN, (g, map(size, arrays), batch))
    return Array(run_graph(g, [like isa JLArray ? JLArray(a) : copy(a) for a in arrays], like, batch))
end

# Holds the last node of a graph against an array, on both kinds of arrays.
function holds(nodes, arrays, expected; batch = size(last(arrays), ndims(last(arrays))))
    g = graph(fill("z", length(arrays)), nodes)
    return all((Float64[], JLArray(Float64[]))) do like
        got = evaluate(g, arrays, like; batch)
        size(got) == size(expected) && isapprox(got, expected; rtol = 1e-13, atol = 1e-13)
    end
end

draw(shape...) = randn(Xoshiro(sum(shape)), shape...)

# ---- one perceptron, value and products -----------------------------------------------------------------------

# dz/dt = W₂ tanh(W₁ z + b) t, z of two features, three hidden.
const PERCEPTRON = graph(
    ["t", "z", "parameter", "parameter", "parameter", "cotangent"],
    [
        input(0, []), input(1, [[1, 0], 2]), input(2, [3, 2]), input(3, [3]), input(4, [2, 3]), input(5, [[1, 0], 2]),
        node("permute", [2], [2, 3]; dims = [1, 0]),
        node("mm", [1, 6], [[1, 0], 3]),
        node("add", [3, 7], [[1, 0], 3]),
        node("tanh", [8], [[1, 0], 3]),                                    # 9: h
        node("permute", [4], [3, 2]; dims = [1, 0]),
        node("mm", [9, 10], [[1, 0], 2]),                                  # 11
        node("mul", [11, 0], [[1, 0], 2]),                                 # 12: value
        node("mul", [5, 0], [[1, 0], 2]),                                  # 13: cotangent of 11
        node("mul", [5, 11], [[1, 0], 2]),
        node("sum", [14], []; dims = [0, 1], keepdim = false),             # 15: of t
        node("mm", [13, 4], [[1, 0], 3]),
        node("permute", [13], [2, [1, 0]]; dims = [1, 0]),
        node("mm", [17, 9], [2, 3]),                                       # 18: of W₂
        node("mul", [9, 9], [[1, 0], 3]),
        node("sub", [Dict("number" => 1), 19], [[1, 0], 3]),
        node("mul", [16, 20], [[1, 0], 3]),                                # 21: of W₁ z + b
        node("sum", [21], [3]; dims = [0], keepdim = false),               # 22: of b
        node("permute", [21], [3, [1, 0]]; dims = [1, 0]),
        node("mm", [23, 1], [3, 2]),                                       # 24: of W₁
        node("mm", [21, 2], [[1, 0], 2]),                                  # 25: of z
    ],
    [12],
    [15, 25, 24, 22, 18],
)

run!(program, t) = (program(t); nothing)

@testset "perceptron" begin
    @testset "$T, batch $batch, $(nameof(typeof(like)))" for T in (Float64, Float32), batch in (1, 5),
        like in (T[], JLArray(T[]))

        w = PyNODE.Workspace(PyNODE.Kernel{T}(PERCEPTRON), batch, like)
        prologue, value, vjp = (PyNODE.bind(w, p) for p in (w.kernel.prologue, w.kernel.value, w.kernel.vjp))
        rng = Xoshiro(1)
        z, v, W₁, b, W₂ = (randn(rng, T, s...) for s in ((2, batch), (2, batch), (2, 3), (3,), (3, 2)))
        t = T(0.7)
        copyto!(w.θ, [vec(W₁); b; vec(W₂)])
        copyto!(w.u, vec(z))
        copyto!(w.v, vec(v))
        prologue(t)
        value(t)
        vjp(t)
        # PyTorch's matrices are Julia's transposed.
        h = tanh.(W₁' * z .+ b)
        dh = (W₂ * (v .* t)) .* (1 .- h .^ 2)
        exact(x) = isapprox(Array(x[1]), x[2]; rtol = 10eps(T), atol = 10eps(T))
        @test exact((w.du, vec(W₂' * h .* t)))
        @test exact((w.dz, vec(W₁ * dh)))
        @test exact((w.dt, [sum(v .* (W₂' * h))]))
        @test exact((w.dθ, [vec(z * dh'); vec(sum(dh; dims = 2)); vec(h * (v .* t)')]))
        if like isa Array
            for program in (value, vjp)
                run!(program, t)
                @test (@allocated run!(program, t)) == 0
            end
        end
    end
end

# ---- operations -----------------------------------------------------------------------------------------------

@testset "views and copies" begin
    x = draw(4, 3, 5)                       # PyTorch's (5, 3, 4)
    B = [1, 0]
    z = input(0, [B, 3, 4])
    @test holds([z, node("reshape", [0], [B, 2, 6])], [x], reshape(x, 6, 2, 5))
    @test holds([z, node("permute", [0], [4, B, 3]; dims = [2, 0, 1])], [x], permutedims(x, (2, 3, 1)))
    @test holds([z, node("permute", [0], [B, 4, 3]; dims = [0, 2, 1])], [x], permutedims(x, (2, 1, 3)))
    @test holds([z, node("slice", [0], [B, 3, 2]; dim = 2, start = 1, stop = 4, step = 2)], [x], x[2:2:4, :, :])
    @test holds([z, node("slice", [0], [[1, -1], 3, 4]; dim = 0, start = 1, stop = B, step = 1)], [x], x[:, :, 2:5])
    embedded = zeros(4, 9, 5)
    embedded[:, 3:2:7, :] .= x
    @test holds([z, node("embed", [0], [B, 9, 4]; dim = 1, start = 2, stop = 7, step = 2)], [x], embedded)
    @test holds([z, node("flip", [0], [B, 3, 4]; dims = [1, 2])], [x], reverse(x; dims = (1, 2)))
    y = draw(4, 2, 5)
    @test holds(
        [z, input(1, [B, 2, 4]), node("neg", [1], [B, 2, 4]), node("cat", [0, 2, 0], [B, 8, 4]; dim = 1)],
        [x, y], cat(x, -y, x; dims = 2),
    )
    @test holds([z, node("cat", [0, 0], [[2, 0], 3, 4]; dim = 0)], [x], cat(x, x; dims = 3))
end

@testset "reductions" begin
    x = draw(4, 3, 5)
    z = input(0, [[1, 0], 3, 4])
    for (op, f) in (("sum", sum), ("amax", maximum), ("amin", minimum))
        kept = f(x; dims = (1, 3))
        @test holds([z, node(op, [0], [1, 3, 1]; dims = [0, 2], keepdim = true)], [x], kept)
        @test holds([z, node(op, [0], [3]; dims = [0, 2], keepdim = false)], [x], vec(kept))
        @test holds([z, node(op, [0], []; dims = [0, 1, 2], keepdim = false)], [x], fill(f(x)))
    end
    @test holds([z, node("prod", [0], [[1, 0], 4]; dim = 1, keepdim = false)], [x], prod(x; dims = 2)[:, 1, :])
    for (op, f) in (("cumsum", cumsum), ("cumprod", cumprod)), d in 1:3
        @test holds([z, node(op, [0], [[1, 0], 3, 4]; dim = 3 - d)], [x], f(x; dims = d))
    end
end

@testset "indexing by constants" begin
    x = draw(4, 3, 5)
    z = input(0, [[1, 0], 3, 4])
    @test holds([z, node("index_select", [0], [[1, 0], 3, 6]; dim = 2, index = [3, 0, 0, 1, 3, 3])], [x], x[[4, 1, 1, 2, 4, 4], :, :])
    for index in ([5, 0, 2, 1], [1, 4, 1, 1])
        added = zeros(6, 3, 5)
        foreach(((k, i),) -> added[i + 1, :, :] .+= x[k, :, :], enumerate(index))
        @test holds([z, node("index_add", [0], [[1, 0], 3, 6]; dim = 2, index)], [x], added)
    end
    @test PyNODE.rounds([7, 3, 7, 7, 3, 1]) == [[1, 2, 6], [3, 5], [4]]
end

@testset "matrix products" begin
    x, y = draw(4, 3, 5), draw(2, 4, 5)     # PyTorch's (5, 3, 4) and (5, 4, 2)
    B = [1, 0]
    product = stack(y[:, :, k] * x[:, :, k] for k in 1:5)
    ends = [input(0, [B, 3, 4]), input(1, [B, 4, 2])]
    @test holds([ends..., node("bmm", [0, 1], [B, 3, 2])], [x, y], product)
    turned = node("permute", [0], [B, 4, 3]; dims = [0, 2, 1])
    back = node("permute", [2], [B, 3, 4]; dims = [0, 2, 1])
    @test holds([ends..., turned, back, node("bmm", [3, 1], [B, 3, 2])], [x, y], product)
    @test holds(
        [input(0, [B, 4]), node("permute", [0], [4, B]; dims = [1, 0]), node("mm", [1, 0], [4, 4])],
        [x[:, 1, :]], x[:, 1, :] * x[:, 1, :]',
    )
end

# z Wᵀ + b of so many features, and its products.
linear(n) = graph(
    ["t", "z", "parameter", "parameter", "cotangent"],
    [
        input(0, []), input(1, [[1, 0], n]), input(2, [n, n]), input(3, [n]), input(4, [[1, 0], n]),
        node("permute", [2], [n, n]; dims = [1, 0]),
        node("mm", [1, 5], [[1, 0], n]),
        node("add", [3, 6], [[1, 0], n]),
        node("mm", [4, 2], [[1, 0], n]),
        node("permute", [4], [n, [1, 0]]; dims = [1, 0]),
        node("mm", [9, 1], [n, n]),
        node("sum", [4], [n]; dims = [0], keepdim = false),
    ],
    [7],
    [nothing, 8, 10, 11],
)

@testset "weights of $n × $n turned for a batch of $batch in blocks of $rows" for n in (3, 16, 40),
    (batch, rows) in ((1, 1), (2, 2), (3, 2), (5, 2), (7, 7)), like in (Float64[], JLArray(Float64[]))

    @test PyNODE.turned_weights(linear(n)) == (n < 8 ? [] : [6])
    like isa JLArray && rows < batch && continue
    w = PyNODE.Workspace(PyNODE.Kernel{Float64}(linear(n)), batch, like; rows)
    prologue, value, vjp = (PyNODE.bind(w, p) for p in (w.kernel.prologue, w.kernel.value, w.kernel.vjp))
    for seed in 1:2  # the weights of the last time are not kept
        z, v, W, b = (randn(Xoshiro(seed), s...) for s in ((n, batch), (n, batch), (n, n), (n,)))
        foreach(copyto!, (w.θ, w.u, w.v), ([vec(W); b], vec(z), vec(v)))
        foreach(p -> p(0.0), (prologue, value, vjp))
        expected = (vec(W' * z .+ b), vec(W * v), [vec(z * v'); vec(sum(v; dims = 2))])
        @test all(((x, y),) -> isapprox(Array(x), y; rtol = 1e-14), zip((w.du, w.dz, w.dθ), expected))
    end
end

@testset "products of $m × $k and $k × $n in parts, in $T" for (m, k, n) in ((128, 128, 64), (64, 300, 256), (30, 1200, 40)),
    T in (Float32, Float64)

    threads = PyNODE.BLAS.get_num_threads()
    PyNODE.BLAS.set_num_threads(1)
    a, b, c = randn(Xoshiro(1), T, m, k), randn(Xoshiro(2), T, k, n), zeros(T, m, n)
    for right in (b, transpose(permutedims(b)))
        @test PyNODE.parts_of_product(c, a, right) > 1
        for (add, expected) in ((false, a * b), (true, 2a * b))
            PyNODE.multiply!(c, a, right, add)
            @test c ≈ expected rtol = 100eps(T)
        end
        @test (@allocated PyNODE.multiply!(c, a, right, false)) == 0
    end
    PyNODE.BLAS.set_num_threads(threads)
end

# Loops over them tell the compiler that no round waits for another: a number of one of two types lies in memory that all
# rounds share.
@testset "operations have numbers of one type, of $T" for T in (Float32, Float64)
    types = Dict(:ifelse => (Bool, T, T), :polygamma_of => (Int, T), :! => (Bool,))
    for (name, f) in PyNODE.POINTWISE
        operation = Core.eval(PyNODE, f)
        given = name in (:logical_and, :logical_or, :logical_xor) ? (Bool, Bool) : get(types, f, nothing)
        given = something(given, hasmethod(operation, Tuple{T,T}) && !hasmethod(operation, Tuple{T}) ? (T, T) : (T,))
        name in (:sub, :add, :mul, :atan2, :lt, :le, :gt, :ge, :eq, :ne, :maximum, :minimum) && (given = (T, T))
        @test only(Base.return_types(operation, given)) in (T, Bool)
    end
    of(numbers) = PyNODE.compiled(numbers, (:x,), :(x[1] = $(numbers(0.1)) * x[1]))
    x = [one(T)]
    of(T == Float32 ? Float64 : Float32)([1.0])
    of(T)(x)
    @test x[1] === T(0.1)
end

@testset "expressions" begin
    x, y = draw(4, 5), draw(1, 5)
    B = [1, 0]
    z = input(0, [B, 4])
    number(v) = Dict("number" => v)
    # A mask, a size as a number, the time (0.5 in `evaluate`), and broadcasting.
    @test holds(
        [
            z, input(1, [B, 1]),
            node("gt", [0, number(0.1)], [B, 4]; dtype = "bool"),
            node("where", [2, 0, number("-inf")], [B, 4]),
            node("maximum", [3, 1], [B, 4]),
            node("div", [4, number([1, 0])], [B, 4]),
            node("expand", [1], [B, 4]),
            node("cast", [2], [B, 4]),
            node("add", [5, 6], [B, 4]),
            node("mul", [8, 7], [B, 4]),
        ],
        [x, y], (max.(ifelse.(x .> 0.1, x, -Inf), y) ./ 5 .+ y) .* (x .> 0.1),
    )
    mask = node("const", [], [4]; dtype = "bool", data = [true, false, false, true])
    @test holds([z, mask, node("where", [1, 0, number(0.0)], [B, 4])], [x], x .* [1, 0, 0, 1])
    for power in (-2, -1, -0.5, 0, 0.5, 1, 2, 3, 7, 1.7)
        @test holds([z, node("abs", [0], [B, 4]), node("pow", [1, number(power)], [B, 4])], [x], abs.(x) .^ power)
    end
    ones = node("full", [number([1, 0])], [B, 4])
    @test holds([z, ones, node("add", [0, 1], [B, 4])], [x], x .+ 5)
end

@testset "exponentials and logarithms in $T, to units in the last place" for T in (Float32, Float64)
    exact(f, x) = T(f(big(x)))
    off(f, g, xs) = maximum(x -> abs(f(x) - g(big(x))) / eps(abs(exact(g, x))), filter(x -> floatmin(T) < abs(exact(g, x)) < Inf, xs))
    far = log(floatmax(T))
    small = T.(exp.(range(-60, 0, 400)))
    xs = [T.(range(-far, far, 2001)); small; -small]
    @test off(PyNODE.vector_exp, exp, xs) < 1
    @test off(PyNODE.vector_expm1, expm1, xs) < 2.5
    @test off(PyNODE.vector_tanh, tanh, [T.(range(-25, 25, 4001)); small; -small]) < (T === Float64 ? 3 : 5)
    @test off(PyNODE.vector_sigmoid, x -> inv(1 + exp(-x)), xs) < 2
    @test off(PyNODE.vector_log1p, log1p, [T.(exp.(range(-60, far, 2001))); -small[1:(end - 1)]; T.(range(-0.99, 3, 2001))]) < 3
    for x in T[-Inf, Inf, NaN, 0, 1.5far, -1.5far]
        @test isequal(PyNODE.vector_exp(x), exp(x))
        @test isequal(PyNODE.vector_expm1(x), expm1(x)) && isequal(PyNODE.vector_tanh(x), tanh(x))
    end
    least = nextfloat(zero(T))
    for x in T[-1, Inf, NaN, 0, -0.0, least, -least, 3least, -3least, floatmin(T)]
        @test isequal(PyNODE.vector_log1p(x), log1p(x))
        x == -1 || @test isequal(PyNODE.vector_expm1(x), expm1(x)) && isequal(PyNODE.vector_tanh(x), tanh(x))
        @test isequal(PyNODE.vector_exp(x), exp(x))
    end
    @test isnan(PyNODE.vector_log1p(T(-Inf))) && isnan(PyNODE.vector_sigmoid(T(NaN)))
    tiny = T(-1.01far)  # whose exponential is below the least number of full precision
    @test 0 < PyNODE.vector_exp(tiny) && isapprox(PyNODE.vector_exp(tiny), exp(tiny); rtol = 1e-5)
    @test PyNODE.vector_sigmoid.(T[-Inf, 0, Inf]) == [0, 0.5, 1]
    for k in 1:1000  # exponentials without full precision, to the last bit but for one rounding more
        x = log(least) + T(k) / 1000 * (log(floatmin(T)) - log(least))
        @test abs(PyNODE.vector_exp(x) - exact(exp, x)) <= least
    end
    # Without calls and branches, loops over them are vectorised.
    for f in (PyNODE.vector_exp, PyNODE.vector_expm1, PyNODE.vector_log1p, PyNODE.vector_sigmoid, PyNODE.vector_tanh)
        code = first(only(code_typed(f, (T,)))).code
        @test !any(e -> e isa Core.GotoIfNot || Meta.isexpr(e, :invoke), code)
    end
end

@testset "dear operations on broadcasts with short rows" begin
    B = [1, 0]
    z, w, b = draw(3, 1, 5), draw(3, 4), 2 .* draw(3, 4)
    nodes = [
        input(0, [4, 3]), input(1, [4, 3]), input(2, [B, 1, 3]),
        node("mul", [2, 0], [B, 4, 3]), node("add", [3, 1], [B, 4, 3]),
        node("gt", [4, Dict("number" => 0.5)], [B, 4, 3]; dtype = "bool"), node("exp", [4], [B, 4, 3]), node("log1p", [6], [B, 4, 3]),
        node("where", [5, 4, 7], [B, 4, 3]),
    ]
    x = z .* w .+ b
    @test holds(nodes, [w, b, z], ifelse.(x .> 0.5, x, log1p.(exp.(x))))
end

@testset "outside of the domain is NaN, as in PyTorch" begin
    for (f, x) in (
        (PyNODE.safe_log, -1.0), (PyNODE.vector_log1p, -2.0), (PyNODE.safe_sqrt, -1.0), (PyNODE.safe_rsqrt, -1.0),
        (PyNODE.safe_asin, 1.5), (PyNODE.safe_acos, 1.5), (PyNODE.safe_acosh, 0.5), (PyNODE.safe_atanh, 1.5),
        (PyNODE.safe_sin, Inf), (PyNODE.safe_cos, -Inf), (PyNODE.safe_tan, Inf), (x -> PyNODE.safe_pow(x, 0.5), -1.0),
    )
        @test isnan(f(x))
        @test isnan(f(NaN))
    end
    @test PyNODE.remainder(-7.0, 3.0) == 2.0
    @test PyNODE.remainder(7.0, -3.0) == -2.0
    @test PyNODE.safe_pow(-2.0, 3.0) == -8.0
end

# ---- convolutions ---------------------------------------------------------------------------------------------

# By the definition, in PyTorch's order of the dimensions.
function correlate(x, w, stride, padding, dilation, groups)
    (W, H, C, B), (kw, kh, c, O) = size(x), size(w)
    size_of(n, k, i) = (n + 2padding[i] - dilation[i] * (k - 1) - 1) ÷ stride[i] + 1
    y = zeros(size_of(W, kw, 2), size_of(H, kh, 1), O, B)
    for b in 1:B, o in 1:O, j in axes(y, 2), i in axes(y, 1), q in 1:c, l in 1:kh, k in 1:kw
        u = (i - 1) * stride[2] + (k - 1) * dilation[2] - padding[2] + 1
        v = (j - 1) * stride[1] + (l - 1) * dilation[1] - padding[1] + 1
        channel = (o - 1) ÷ (O ÷ groups) * c + q
        1 <= u <= W && 1 <= v <= H && (y[i, j, o, b] += w[k, l, q, o] * x[u, v, channel, b])
    end
    return y
end

@testset "convolution: $attrs" for attrs in (
    (stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups = 1),
    (stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 2),
    (stride = [1, 1], padding = [0, 1], dilation = [1, 1], groups = 1),
    (stride = [1, 1], padding = [3, 2], dilation = [2, 2], groups = 1),
    (stride = [2, 1], padding = [0, 2], dilation = [1, 2], groups = 1),
    (stride = [3, 2], padding = [2, 1], dilation = [2, 1], groups = 4),
)
    x, w = draw(6, 7, 4, 3), draw(3, 2, 4 ÷ attrs.groups, 8)
    y = correlate(x, w, attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    dy = draw(size(y)...)
    B = [1, 0]
    image, weights = input(0, [B, 4, 7, 6]), input(1, [8, 4 ÷ attrs.groups, 2, 3])
    out = [B, 8, size(y, 2), size(y, 1)]
    @test holds([image, weights, node("conv", [0, 1], out; attrs...)], [x, w], y; batch = 3)
    # The derivatives are the transposed maps: the convolution is linear in each argument.
    unit(a, k) = reshape([i == k ? 1.0 : 0.0 for i in eachindex(a)], size(a))
    conv(x, w) = correlate(x, w, attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    dx = reshape([sum(dy .* conv(unit(x, k), w)) for k in eachindex(x)], size(x))
    dw = reshape([sum(dy .* conv(x, unit(w, k))) for k in eachindex(w)], size(w))
    @test holds([input(0, out), weights, node("conv_input", [0, 1], [B, 4, 7, 6]; attrs...)], [dy, w], dx; batch = 3)
    @test holds(
        [image, input(1, out), node("conv_weight", [0, 1], [8, 4 ÷ attrs.groups, 2, 3]; attrs...)], [x, dy], dw;
        batch = 3,
    )
end

@testset "convolution of one dimension, a few samples at a time" begin
    attrs = (stride = [2], padding = [1], dilation = [1], groups = 1)
    x, w = draw(3000, 4, 5), draw(3, 4, 2)  # more columns than are laid out at once
    y = dropdims(correlate(reshape(x, 3000, 1, 4, 5), reshape(w, 3, 1, 4, 2), [1, 2], [0, 1], [1, 1], 1); dims = 2)
    nodes = [input(0, [[1, 0], 4, 3000]), input(1, [2, 4, 3]), node("conv", [0, 1], [[1, 0], 2, 1500]; attrs...)]
    @test holds(nodes, [x, w], y; batch = 5)
    @test PyNODE.columns_at_once(x) < 1500 * 12 * 5
end

# ---- convolutions by rows -------------------------------------------------------------------------------------

# The outputs of a program on arrays of one kind, which is run twice.
function outputs(g, arrays, nodes, batch, like = Float64[])
    n = length(arrays)
    program = PyNODE.lower(g, Float64, Dict(i => i for i in 1:n), n, [i => nothing for i in nodes])
    buffers = Any[like isa JLArray ? JLArray(a) : copy(a) for a in arrays]
    foreach(s -> push!(buffers, s.make(like, batch, buffers)), program.specs)
    program.run(Tuple(buffers), 0.5, batch)
    program.run(Tuple(buffers), 0.5, batch)
    return program, buffers, map(b -> Array(buffers[b]), program.outputs)
end

# Value and products of a convolution, `x` and `w` in Julia's order; shapes are PyTorch's.
function conv_graph(x, w, out, attrs)
    B, N = [1, 0], ndims(x) - 2
    image, result = [B, reverse(size(x)[1:(N + 1)])...], [B, reverse(out)...]
    weights = [reverse(size(w))...]
    return graph(["z", "parameter", "cotangent"], [
        input(0, image), input(1, weights), input(2, result), node("conv", [0, 1], result; attrs...),
        node("conv_input", [2, 1], image; attrs...), node("conv_weight", [0, 2], weights; attrs...),
    ])
end

# The transposes of `correlate`, by the definition.
function correlate_back(x, w, dy, stride, padding, dilation, groups)
    (W, H), (kw, kh, c, O), dx, dw = size(x), size(w), zero(x), zero(w)
    for b in axes(x, 4), o in 1:O, j in axes(dy, 2), i in axes(dy, 1), q in 1:c, l in 1:kh, k in 1:kw
        u = (i - 1) * stride[2] + (k - 1) * dilation[2] - padding[2] + 1
        v = (j - 1) * stride[1] + (l - 1) * dilation[1] - padding[1] + 1
        channel = (o - 1) ÷ (O ÷ groups) * c + q
        1 <= u <= W && 1 <= v <= H || continue
        dx[u, v, channel, b] += w[k, l, q, o] * dy[i, j, o, b]
        dw[k, l, q, o] += x[u, v, channel, b] * dy[i, j, o, b]
    end
    return dx, dw
end

function allocated(run)
    run(0.5)
    return @allocated run(0.5)
end

by_rows(buffers) = count(b -> b isa PyNODE.Rows, buffers)

@testset "convolution by rows: $attrs" for attrs in (
    (stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups = 1),
    (stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 2),
    (stride = [1, 1], padding = [0, 1], dilation = [1, 1], groups = 1),
    (stride = [1, 1], padding = [3, 2], dilation = [2, 2], groups = 1),
)
    x, w = draw(6, 7, 8 * attrs.groups, 5), draw(3, 2, 8, 6 * attrs.groups)
    y = correlate(x, w, attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    dy = draw(size(y)...)
    dx, dw = correlate_back(x, w, dy, attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    g = conv_graph(x, w, size(y)[1:3], attrs)
    for nodes in ([4, 5, 6], [4], [5], [6])  # the products share their windows where both are asked for
        program, buffers, got = outputs(g, [x, w, dy], nodes, 5)
        @test by_rows(buffers) == (length(nodes) == 3 ? 2 : 1)
        @test all(zip(nodes, got)) do (i, a)
            isapprox(a, (y, dx, dw)[i - 3]; rtol = 1e-13)
        end
        @test allocated(PyNODE.Bound(program.run, Tuple(buffers), 5, false)) == 0
    end
end

# Against `im2col`, which arrays of devices go by: other dimensions, and images of several blocks and products.
@testset "convolution by rows: $(size(x)), $(size(w))" for (x, w) in (
    (draw(300, 16, 5), draw(3, 16, 20)),
    (draw(4, 5, 6, 8, 2), draw(3, 3, 3, 8, 7)),
    (draw(40, 60, 8, 2), draw(3, 3, 8, 8)),
    (draw(9, 120, 32, 2), draw(3, 5, 32, 64)),
)
    N = ndims(x) - 2
    attrs = (stride = ones(Int, N), padding = ones(Int, N), dilation = ones(Int, N), groups = 1)
    out = (ntuple(i -> size(x, i) + 3 - size(w, i), N)..., size(w, N + 2))
    g, batch = conv_graph(x, w, out, attrs), size(x, N + 2)
    arrays = [x, w, draw(out..., batch)]
    _, buffers, got = outputs(g, arrays, [4, 5, 6], batch)
    found = filter(b -> b isa PyNODE.Rows, buffers)
    @test length(found) == 2
    N == 2 && @test any(r -> r.block < last(r.out), found)
    size(w, 4) == 64 && @test any(r -> r.chunk < r.block, found)
    _, on_device, expected = outputs(g, arrays, [4, 5, 6], batch, JLArray(Float64[]))
    @test by_rows(on_device) == 0
    @test all(isapprox(a, b; rtol = 1e-12) for (a, b) in zip(got, expected))
end

# ---- an image of equal numbers --------------------------------------------------------------------------------

@testset "the derivative in the weights of an image of equal numbers: $attrs" for attrs in (
    (stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 1),
    (stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups = 2),
    (stride = [1, 1], padding = [3, 2], dilation = [2, 2], groups = 1),
    (stride = [2, 1], padding = [0, 2], dilation = [1, 2], groups = 1),
    (stride = [3, 2], padding = [2, 1], dilation = [2, 1], groups = 4),
    (stride = [4, 5], padding = [9, 9], dilation = [1, 3], groups = 1),  # some windows do not meet the image
)
    x, w = fill(2.5, 6, 7, 4, 3), draw(3, 2, 4 ÷ attrs.groups, 8)
    dy = draw(size(correlate(x, w, attrs.stride, attrs.padding, attrs.dilation, attrs.groups))...)
    _, dw = correlate_back(x, w, dy, attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    B, weights = [1, 0], [8, 4 ÷ attrs.groups, 2, 3]
    nodes = [
        input(0, [B, reverse(size(dy)[1:3])...]), node("full", [Dict("number" => 2.5)], [B, 4, 7, 6]),
        node("conv_weight", [1, 0], weights; attrs...),
    ]
    @test holds(nodes, [dy], dw)
end

@testset "the same in $(length(size)) dimensions, and on threads" for (size, kernel) in (((300,), (3,)), ((20, 30, 100), (3, 2, 5)))
    N = length(size)
    attrs = (stride = ones(Int, N), padding = ones(Int, N), dilation = ones(Int, N), groups = 1)
    dy = draw(ntuple(i -> size[i] + 3 - kernel[i], N)..., 5, 2)
    B, weights, image = [1, 0], [5, 2, reverse(kernel)...], [[1, 0], 2, reverse(size)...]
    cotangent = [B, 5, reverse(Base.size(dy)[1:N])...]
    expected = evaluate(
        graph(["z", "z"], [input(0, image), input(1, cotangent), node("conv_weight", [0, 1], weights; attrs...)]),
        [fill(-0.5, size..., 2, 2), dy],
    )
    @test holds([input(0, cotangent), node("full", [Dict("number" => -0.5)], image), node("conv_weight", [1, 0], weights; attrs...)], [dy], expected)
    unit = ntuple(_ -> 1, N)
    boxes = PyNODE.Boxes(PyNODE.Window(unit, unit, unit), size, kernel, Base.size(dy))
    of(threads) = PyNODE.sum_boxes!(fill(NaN, kernel..., 2, 5), dy, -0.5, boxes, threads)
    @test of(1) == of(2) == of(3)
    @test isapprox(of(1), expected; rtol = 1e-12)
end

# ---- refusals -------------------------------------------------------------------------------------------------

@testset "refusals" begin
    g = graph(["z"], [input(0, [[1, 0], 2]), node("riddle", [0], [[1, 0], 2])])
    @test_throws "the graph has the operation `riddle`, which this PyNODE cannot lower" evaluate(g, [draw(2, 3)])
    @test_throws "expected a graph of version 1, got 9" PyNODE.Graph("""{"version": 9}""")
end
