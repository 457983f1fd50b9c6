# Batches in blocks: which can be, and that it changes no number but by rounding.

# dz/dt = tanh(z Wᵀ) a, z of two features; `a` has a row for each sample.
const CONDITIONED = graph(
    ["t", "z", "arg", "parameter", "cotangent"],
    [
        input(0, []), input(1, [[1, 0], 2]), input(2, [[1, 0], 2]), input(3, [2, 2]), input(4, [[1, 0], 2]),
        node("permute", [3], [2, 2]; dims = [1, 0]),
        node("mm", [1, 5], [[1, 0], 2]),
        node("tanh", [6], [[1, 0], 2]),                                    # 7: h
        node("mul", [7, 2], [[1, 0], 2]),                                  # 8
        node("mul", [8, 0], [[1, 0], 2]),                                  # 9: value
        node("mul", [4, 8], [[1, 0], 2]),
        node("sum", [10], []; dims = [0, 1], keepdim = false),             # 11: of t
        node("mul", [4, 0], [[1, 0], 2]),
        node("mul", [12, 7], [[1, 0], 2]),                                 # 13: of a
        node("mul", [12, 2], [[1, 0], 2]),
        node("mul", [7, 7], [[1, 0], 2]),
        node("sub", [Dict("number" => 1), 15], [[1, 0], 2]),
        node("mul", [14, 16], [[1, 0], 2]),                                # 17: of z Wᵀ
        node("mm", [17, 3], [[1, 0], 2]),                                  # 18: of z
        node("permute", [17], [2, [1, 0]]; dims = [1, 0]),
        node("mm", [19, 1], [2, 2]),                                       # 20: of W
    ],
    [9],
    [11, 18, 13, 20],
)

"The value and all products of a workspace, at once and by way of a record."
function products_of(w, x, a, W, v, t)
    copyto!(w.u, x), copyto!(w.θ, [vec(a); vec(W)]), copyto!(w.v, v)
    residuals = PyNODE.new_residuals(w)
    u, du = copy(w.u), zero(w.du)
    GC.@preserve u du begin
        record, replay = PyNODE.bind(w, w.kernel.record; u, du, residuals), PyNODE.bind(w, w.kernel.replay; u, residuals)
        for p in (w.kernel.prologue, w.kernel.value, w.kernel.vjp)
            PyNODE.bind(w, p)(t)
        end
        once = map(copy, (w.du, w.dz, w.dθ, w.dt))
        fill!(w.u, NaN)
        record(t), replay(t)
        return once, map(copy, (du, w.dz, w.dθ, w.dt))
    end
end

@testset "the samples of a batch in blocks" begin
    kernel = PyNODE.Kernel{Float64}(CONDITIONED)
    @test PyNODE.samples_apart(kernel.graph)
    batch = 7
    x, a, W, v = (randn(Xoshiro(i), 2, n) for (i, n) in enumerate((batch, batch, 2, batch)))
    expected, _ = products_of(PyNODE.Workspace(kernel, batch), x, a, W, v, 0.7)
    for (threads, rows, blocks) in ((2, 7, 2), (1, 2, 4), (3, 2, 4), (2, 1, 7))
        w = PyNODE.Workspace(kernel, batch; threads, rows)
        @test reduce(vcat, b.samples for of_thread in w.blocks for b in of_thread) == 1:batch
        @test length(w.blocks) == threads
        @test sum(length, w.blocks) == blocks
        for way in products_of(w, x, a, W, v, 0.7), (found, right) in zip(way, expected)
            @test found ≈ right rtol = 1e-14
        end
    end
end

@testset "what blocks have in common has one place for all bindings of a program" begin
    w = PyNODE.Workspace(PyNODE.Kernel{Float64}(CONDITIONED), 7; rows = 2)
    (a, b) = (PyNODE.bind(w, w.kernel.replay; residuals = PyNODE.new_residuals(w)) for _ in 1:2)
    @test !isempty(a.sums) && all(map(===, a.sums, b.sums))
end

@testset "how many samples a block has" begin
    # z of so many features, through a product with a matrix, which is as wide as that.
    function rows(width, wide)
        nodes = [
            input(0, [[1, 0], width]), input(1, [width, wide]), node("mm", [0, 1], [[1, 0], wide]),
            node("sum", [2], [[1, 0], 1]; dims = [1], keepdim = true), node("mul", [0, 3], [[1, 0], width]),
        ]
        return PyNODE.rows_of_blocks(graph(["z", "parameter"], nodes, [4]))
    end
    @test rows(8, 512) == 128
    @test rows(2, 2) == 2^13 ÷ 2  # what stays in a cache
    @test PyNODE.part_batch(PyNODE.Kernel{Float32}(CONDITIONED), 2^23, 1).rows == 2^23 ÷ 1024
    few = PyNODE.part_batch(PyNODE.Kernel{Float32}(CONDITIONED), 7, 1)
    @test few.rows == 7 && few.threads == 1
end

@testset "a stage's arrays in one block, of $batch samples in blocks of $rows" for (batch, rows) in ((1000, 1000), (1000, 300), (2^18, 2^15))
    w = PyNODE.Workspace(PyNODE.Kernel{Float64}(CONDITIONED), batch; rows)
    tape = PyNODE.Tape(w)
    for values in (false, true), heavy in (false, true)
        stage = PyNODE.make_stage(tape, heavy, values)
        @test length(stage.u) == 2batch && length(stage.k) == 2batch * values
        first, last = UInt(pointer(stage.block)), UInt(pointer(stage.block)) + length(stage.block)
        @test first <= UInt(pointer(stage.u)) && UInt(pointer(stage.u)) + sizeof(stage.u) <= last
        @test stage.bytes <= length(stage.block) < stage.bytes + 2 * 64
    end
    memory = PyNODE.Memory(200, 64)
    a, b = PyNODE.next_array!(memory, Float64, (3, 3)), PyNODE.next_array!(memory, Float32, (2,))
    @test size(a) == (3, 3) && UInt(pointer(b)) - UInt(pointer(a)) == 128
    @test_throws ArgumentError PyNODE.next_array!(memory, Float64, (2,))
end

@testset "which samples are apart" begin
    value(nodes, kinds = ["z"]) = graph(kinds, nodes, [length(nodes) - 1])
    apart(nodes...) = PyNODE.samples_apart(value(collect(nodes)))
    z = input(0, [[1, 0], 3, 2])
    @test apart(z, node("tanh", [0], [[1, 0], 3, 2]))
    # A mean over the batch, in several forms.
    @test !apart(z, node("sum", [0], [1, 3, 2]; dims = [0], keepdim = true), node("sub", [0, 1], [[1, 0], 3, 2]))
    @test !apart(z, node("div", [0, Dict("number" => [1, 0])], [[1, 0], 3, 2]))
    @test !apart(z, node("cumsum", [0], [[1, 0], 3, 2]; dim = 0))
    @test apart(z, node("cumsum", [0], [[1, 0], 3, 2]; dim = 1))
    @test !apart(z, node("flip", [0], [[1, 0], 3, 2]; dims = [1, 0]))
    # Samples that change places with features, and come back or do not.
    swap = node("permute", [0], [3, [1, 0], 2]; dims = [1, 0, 2])
    @test apart(z, swap, node("permute", [1], [[1, 0], 3, 2]; dims = [1, 0, 2]))
    @test !apart(z, swap, node("reshape", [1], [[1, 0], 3, 2]; shape = [[1, 0], 3, 2]))
    # (batch · 3, 2) is three rows for each sample; the sum over pairs of neighbouring rows is over samples.
    rows = node("reshape", [0], [[3, 0], 2]; shape = [[3, 0], 2])
    @test apart(z, rows, node("reshape", [1], [[1, 0], 3, 2]; shape = [[1, 0], 3, 2]))
    # (3 · batch, 2) is three batches, one after the other: what they are put together from, or cut into, is apart.
    three = node("reshape", [1], [[3, 0], 2]; shape = [[3, 0], 2])
    apart_again = node("permute", [3], [[1, 0], 3, 2]; dims = [1, 0, 2])
    @test apart(z, swap, three, node("reshape", [2], [3, [1, 0], 2]; shape = [3, [1, 0], 2]), apart_again)
    @test !apart(z, swap, three, node("reshape", [2], [[1, 0], 3, 2]; shape = [[1, 0], 3, 2]))
    @test !apart(z, swap, three, rows, node("add", [2, 3], [[3, 0], 2]), node("reshape", [4], [[1, 0], 3, 2]; shape = [[1, 0], 3, 2]))
    @test !apart(z, swap, three, node("cumsum", [2], [[3, 0], 2]; dim = 0), node("reshape", [3], [3, [1, 0], 2]; shape = [3, [1, 0], 2]), node("permute", [4], [[1, 0], 3, 2]; dims = [1, 0, 2]))
    two = node("cat", [0, 0], [[2, 0], 3, 2]; dim = 0)
    @test apart(z, two, node("reshape", [1], [2, [1, 0], 3, 2]; shape = [2, [1, 0], 3, 2]), node("sum", [2], [[1, 0], 3, 2]; dims = [0], keepdim = false))
    @test !apart(z, two, node("reshape", [1], [[1, 0], 2, 3, 2]; shape = [[1, 0], 2, 3, 2]), node("sum", [2], [[1, 0], 3, 2]; dims = [1], keepdim = false))
    # Attention between samples: (batch, 6) (6, batch).
    flat = node("reshape", [0], [[1, 0], 6]; shape = [[1, 0], 6])
    turned = node("permute", [1], [6, [1, 0]]; dims = [1, 0])
    @test !apart(z, flat, turned, node("mm", [1, 2], [[1, 0], [1, 0]]))
    @test !apart(z, flat, turned, node("mm", [2, 1], [6, 6]), node("mm", [1, 3], [[1, 0], 6]))
    # Numbers of the samples themselves.
    @test !apart(z, node("arange", [], [[1, 0]]), node("reshape", [1], [[1, 0], 1, 1]), node("mul", [0, 2], [[1, 0], 3, 2]))
end
