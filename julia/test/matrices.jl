# Lowering of indexing by what is computed, of sorting, tables and linear algebra; after lower.jl, whose helpers it takes.

using LinearAlgebra: Diagonal, I, Symmetric, cholesky, diag, eigen, lu, qr, svdvals, tril, triu

@testset "indexing by what is computed" begin
    x = draw(4, 3, 5)                       # PyTorch's (5, 3, 4)
    B = [1, 0]
    z = input(0, [B, 3, 4])
    index = float.(mod.(reshape(1:40, 4, 2, 5) .* 7, 3))
    picked = [x[a, Int(index[a, j, c]) + 1, c] for a in 1:4, j in 1:2, c in 1:5]
    @test holds([z, input(1, [B, 2, 4]), node("gather", [0, 1], [B, 2, 4]; dim = 1)], [x, index], picked)
    added, last = zeros(4, 6, 5), zeros(4, 6, 5)
    places = float.(mod.(reshape(1:60, 4, 3, 5) .* 5, 4))
    for c in 1:5, j in 1:3, a in 1:4
        k = Int(places[a, j, c]) + 1
        added[a, k, c] += x[a, j, c]
        last[a, k, c] = x[a, j, c]
    end
    both = [z, input(1, [B, 3, 4])]
    @test holds([both..., node("scatter_add", [0, 1], [B, 6, 4]; dim = 1)], [x, places], added)
    @test holds([both..., node("scatter", [0, 1], [B, 6, 4]; dim = 1)], [x, places], last)
    # What points outside, or is no number, gives NaN, on either kind of array.
    for wrong in (3.0, -1.0, NaN), like in (Float64[], JLArray(Float64[]))
        outside = copy(index)
        outside[2, 1, 3] = wrong
        g = graph(["z", "z"], [z, input(1, [B, 2, 4]), node("gather", [0, 1], [B, 2, 4]; dim = 1)])
        got = evaluate(g, [x, outside], like)
        @test findall(isnan, got) == [CartesianIndex(2, 1, 3)]
        g = graph(["z", "z"], [input(0, [B, 2, 4]), input(1, [B, 2, 4]), node("scatter_add", [0, 1], [B, 3, 4]; dim = 1)])
        @test isnan(evaluate(g, [picked, outside], like)[2, 1, 3])
    end
end

@testset "order" begin
    B = [1, 0]
    for n in (7, 100)
        x = draw(n, 5)
        x[3, :] .= x[1, :]  # equal entries stay in their order
        z = input(0, [B, n])
        for (descending, rev) in ((false, false), (true, true))
            expected = stack(sortperm(c; rev, alg = MergeSort) .- 1.0 for c in eachcol(x))
            @test holds([z, node("argsort", [0], [B, n]; dim = 1, descending)], [x], expected)
        end
    end
    knots, x = sort(draw(9)), draw(4, 5)
    x[2, :] .= knots[4]
    z = [input(0, [9]), input(1, [B, 4])]
    for (right, f) in ((false, searchsortedfirst), (true, (t, v) -> searchsortedlast(t, v) + 1))
        expected = [f(knots, v) - 1.0 for v in x]
        @test holds([z..., node("searchsorted", [0, 1], [B, 4]; right)], [knots, x], expected)
    end
    tables = sort(draw(9, 5); dims = 1)
    expected = [searchsortedfirst(tables[:, c], x[a, c]) - 1.0 for a in 1:4, c in 1:5]
    @test holds([input(0, [B, 9]), input(1, [B, 4]), node("searchsorted", [0, 1], [B, 4]; right = false)], [tables, x], expected)
    @test PyNODE.search_sorted!([0.0;;], [1.0; 2.0;;], [NaN;;], false) == [2.0;;]
end

# PyTorch's matrices are the transposed of Julia's.
turned(x) = permutedims(x, (2, 1, 3))
each(f, xs...) = stack(f((x[:, :, s] for x in xs)...) for s in axes(first(xs), 3))

@testset "linear algebra, $n" for n in (1, 3, 8)
    B = [1, 0]
    a, b = draw(n, n, 5), draw(2, n, 5)     # PyTorch's (5, n, n) and (5, n, 2)
    A, R = turned(a), turned(b)
    square = [input(0, [B, n, n])]
    factors = each(m -> (f = lu(m); [f.L + f.U - I; f.ipiv']), A)
    @test holds([square..., node("lu", [0], [B, n + 1, n])], [a], turned(factors))
    lus = [
        square..., input(1, [B, n, 2]),
        node("lu", [0], [B, n + 1, n]),
        node("slice", [2], [B, n, n]; dim = 1, start = 0, stop = n, step = 1),
        node("slice", [2], [B, 1, n]; dim = 1, start = n, stop = n + 1, step = 1),
        node("reshape", [4], [B, n]),
    ]
    close(nodes, arrays, expected) = all((Float64[], JLArray(Float64[]))) do like
        got = evaluate(graph(fill("z", length(arrays)), nodes), arrays, like)
        isapprox(got, expected; rtol = 1e-10)
    end
    for (adjoint, f) in ((false, \), (true, (m, r) -> m' \ r))
        @test close([lus..., node("lu_solve", [3, 5, 1], [B, n, 2]; adjoint)], [a, b], turned(each(f, A, R)))
    end
    for (upper, part) in ((true, triu), (false, tril)), unit in (false, true)
        exact = each(A, R) do m, r
            t = part(m)
            unit && (t = t - Diagonal(diag(t)) + I)
            t \ r
        end
        solve = node("solve_triangular", [0, 1], [B, n, 2]; upper, unit)
        @test close([square..., input(1, [B, n, 2]), solve], [a, b], turned(exact))
    end
    positive = each(m -> m * m' + I, A)
    lower = each(m -> Matrix(cholesky(Symmetric(m)).L), positive)
    @test close([square..., node("cholesky", [0], [B, n, n])], [positive], turned(lower))
    @test close([square..., node("matrix_exp", [0], [B, n, n])], [a], turned(each(exp, A)))
    symmetric = each(m -> m + m', A)
    g = graph(["z"], [square..., node("eigh", [0], [B, n + 1, n])])
    found = turned(evaluate(g, [symmetric]))
    @test found[1, :, :] ≈ stack(eigen(Symmetric(symmetric[:, :, s])).values for s in 1:5)
    again = each(f -> f[2:end, :] * (f[1, :] .* f[2:end, :]'), found)
    @test again ≈ symmetric
    # What cannot be solved is not finite.
    singular = zeros(n, n, 1)
    @test !any(isfinite, evaluate(graph(["z", "z"], [lus..., node("lu_solve", [3, 5, 1], [B, n, 2]; adjoint = false)]), [singular, b[:, :, 1:1]]))
    @test any(isnan, evaluate(graph(["z"], [square..., node("cholesky", [0], [B, n, n])]), [-positive]))
    @test all(isnan, evaluate(graph(["z"], [square..., node("matrix_exp", [0], [B, n, n])]), [fill(NaN, n, n, 1)]))
end

@testset "orthogonal factors, $m × $n" for (m, n) in ((1, 1), (3, 3), (5, 3), (9, 8))
    B = [1, 0]
    a = draw(n, m, 5)                       # PyTorch's (5, m, n)
    a[:, 2:end, 2] .= 0                     # nothing below the diagonal: no reflection
    A = turned(a)
    one(op, rows) = graph(["z"], [input(0, [B, m, n]), node(op, [0], [B, rows, n])])
    # LAPACK's signs, which are PyTorch's.
    expected = each(x -> (f = qr(x); [Matrix(f.Q); f.R]), A)
    found = turned(evaluate(one("qr", m + n), [a]))
    @test found ≈ expected
    @test Array(turned(Array(evaluate(one("qr", m + n), [a], JLArray(Float64[]))))) ≈ expected
    found = turned(evaluate(one("svd", m + 1 + n), [a]))
    again = each(f -> f[1:m, :] * Diagonal(f[m + 1, :]) * f[(m + 2):end, :]', found)
    @test again ≈ A
    @test found[m + 1, :, :] ≈ stack(svdvals(A[:, :, s]) for s in 1:5)
    @test all(isnan, evaluate(one("svd", m + 1 + n), [fill(NaN, n, m, 1)]))
end

@testset "running extrema and sums" begin
    x, B = draw(4, 6, 5), [1, 0]
    logsum(a, b) = log(exp(a) + exp(b))
    for (op, f) in (("cummax", max), ("cummin", min), ("logcumsumexp", logsum)), d in (1, 2)
        expected = accumulate(f, x; dims = 3 - d)
        got = evaluate(graph(["z"], [input(0, [B, 6, 4]), node(op, [0], [B, 6, 4]; dim = d)]), [x])
        @test got ≈ expected
    end
    @test PyNODE.logaddexp.([-Inf, Inf, 1.0, -Inf], [-Inf, Inf, -Inf, 2.0]) == [-Inf, Inf, 1.0, 2.0]
    g = graph(["z"], [input(0, [B, 4]), node("arange", [], [B, 1]), node("mul", [0, 1], [B, 4])])
    z = draw(4, 5)
    @test evaluate(g, [z]) == z .* (0:4)'
end

@testset "a transposed matrix times one column, $T, $n × $m" for T in (Float32, Float64), (n, m) in ((2, 16), (16, 2), (8, 64), (40, 40), (3, 1))
    w, x, y = T.(sin.(reshape(1:(n * m), n, m))), T.(cos.(reshape(1:n, n, 1))), fill(T(NaN), m, 1)
    exact = transpose(Float64.(w)) * Float64.(x)
    @test PyNODE.multiply!(y, transpose(w), x, false) ≈ exact rtol = 10eps(T) * n
    @test PyNODE.multiply!(y, transpose(w), x, true) ≈ 2exact rtol = 10eps(T) * n
    @test_throws DimensionMismatch PyNODE.multiply!(y, transpose(w), x[2:end, :], false)
end
