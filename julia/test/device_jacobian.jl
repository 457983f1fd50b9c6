# Jacobians by blocks, as devices have them, on arrays of the processor and on arrays like a GPU's.

using LinearAlgebra
using Random: Xoshiro, shuffle
using PyNODE: Blocks, BlockJacobian, Elimination, Jacobian, Places, Processor, TimeGradient, empty_vector, factorise!, prototype,
    solve_blocks!, subtract_identity!

"The matrix that blocks are of."
function whole(x::Blocks)
    numbers, entries, n = Array(x.numbers), Array(x.places.entries), size(x, 1)
    matrix = zeros(eltype(x), n, n)
    for b in axes(entries, 1)
        matrix[entries[b, :], entries[b, :]] .= numbers[b, :, :]
    end
    return matrix
end

"Blocks of random numbers, at random places."
function random_blocks(device, T, n, d)
    at = shuffle(Xoshiro(n * d), reshape(1:(n * d), n, d))
    inverse = CartesianIndices(at)[invperm(vec(at))]
    on(x, E) = copyto!(similar(empty_vector(device, T), E, size(x)), x)
    places = Places(on(at, Int), on(first.(Tuple.(inverse)), Int), on(last.(Tuple.(inverse)), Int))
    return Blocks(on(randn(Xoshiro(d), T, n, d, d), T), places)
end

@testset "systems of equations of blocks, $T" for T in (Float64, Float32), device in (Processor(), Like())
    for (n, d) in ((1, 1), (5, 1), (4, 2), (3, 7), (3, 16), (3, 17), (1, 40))
        A = random_blocks(device, T, n, d)
        matrix, b = whole(A), randn(Xoshiro(1), T, n * d)
        @test opnorm(A, Inf) ≈ opnorm(matrix, Inf)
        W = similar(A)
        subtract_identity!(W, A, T(0.3))
        matrix -= T(0.3) * I
        @test whole(W) ≈ matrix
        elimination = Elimination(W)
        factorise!(W, elimination)
        x = copyto!(similar(empty_vector(device, T), n * d), b)
        @test Array(solve_blocks!(similar(x), W, elimination, x)) ≈ matrix \ b rtol = 1000 * cond(matrix) * eps(T)
        @test Array(x) == b
        y = transpose!(similar(A), A)
        @test whole(lmul!(-1, y)) == -transpose(whole(A)) == -whole(copy(A)')
    end
    # The first column of a block starts with zero, and one that is singular has no solution.
    for d in (3, 18)
        A = random_blocks(device, T, 2, d)
        numbers = Array(A.numbers)
        numbers[1, 1, 1] = 0
        numbers[2, :, 2] .= 0
        copyto!(A.numbers, numbers)
        matrix, b, elimination = whole(A), randn(Xoshiro(1), T, 2d), Elimination(A)
        first_block, second = (Array(A.places.entries)[i, :] for i in 1:2)
        factorise!(A, elimination)
        x = copyto!(similar(empty_vector(device, T), 2d), b)
        found = Array(solve_blocks!(x, A, elimination, x))
        expected = matrix[first_block, first_block] \ b[first_block]
        @test found[first_block] ≈ expected rtol = 1000 * cond(matrix[first_block, first_block]) * eps(T)
        @test !all(isfinite, found[second])
    end
end

@testset "the Jacobian of a field by blocks" begin
    field = TracedField(Workspace(sample_kernel(Float64), 5, empty_vector(Like(), Float64)))
    plain = sample_field(Float64, 5)
    u, θ = randn(Xoshiro(3), 10), [0.1, 0.2, -0.3, 0.4]
    expected = zeros(10, 10)
    Jacobian(plain)(expected, u, θ, 0.7)
    jac = BlockJacobian(field)
    J = similar(prototype(jac))
    @test size(J.numbers) == (5, 2, 2)
    on_device(x) = copyto!(similar(field.u, length(x)), x)
    jac(J, on_device(u), on_device(θ), 0.7)
    @test whole(J) ≈ expected rtol = 1e-14
    slope = similar(field.u)
    TimeGradient(field)(slope, on_device(u), on_device(θ), 0.7)
    @test Array(slope) ≈ fill(cos(0.7), 10)
end

# dz/dt = t Σ z - z, the sum over the samples: the Jacobian is of blocks at t = 0 alone.
const COUPLED = graph(
    ["t", "z", "cotangent"],
    [
        input(0, []), input(1, [[1, 0], 2]), input(2, [[1, 0], 2]),
        node("sum", [1], [1, 2]; dims = [0], keepdim = true),
        node("mul", [3, 0], [1, 2]),
        node("sub", [4, 1], [[1, 0], 2]),                                  # 5: value
        node("sum", [2], [1, 2]; dims = [0], keepdim = true),
        node("mul", [6, 3], [1, 2]),
        node("sum", [7], []; dims = [0, 1], keepdim = false),              # 8: of t
        node("mul", [6, 0], [1, 2]),
        node("sub", [9, 2], [[1, 0], 2]),                                  # 10: of z
    ],
    [5],
    [8, 10],
)

# dz/dt = -z, of samples that are apart.
const DECAY = graph(
    ["t", "z", "cotangent"],
    [
        input(0, []), input(1, [[1, 0], 2]), input(2, [[1, 0], 2]), node("neg", [1], [[1, 0], 2]), node("neg", [2], [[1, 0], 2]),
    ],
    [3],
    [nothing, 4],
)

field_of(x, like = Float64[]) = TracedField(Workspace(PyNODE.Kernel{Float64}(x), 5, like))

@testset "the Jacobian of samples that depend on one another at times" begin
    jac, u = Jacobian(field_of(COUPLED)), randn(Xoshiro(3), 10)
    J, sums = zeros(10, 10), [Float64(isodd(i) == isodd(k)) for i in 1:10, k in 1:10]
    for t in (0.0, 1.0, 0.0, 2.0)
        jac(J, u, jac.field.θ, t)
        @test J ≈ t * sums - I rtol = 1e-14
    end
end

@testset "products that the operations spare" for like in (Float64[], empty_vector(Like(), Float64))
    field = field_of(DECAY, like)
    u, slope = fill!(similar(field.u), 1), fill!(similar(field.u), NaN)
    TimeGradient(field)(slope, u, field.θ, 0.3)
    @test Array(slope) == zeros(10)
    @test field.counts[2] == 0
    like isa Vector || return
    J = zeros(10, 10)
    Jacobian(field)(J, u, field.θ, 0.3)
    @test J == -I
    @test field.counts[2] == 2
end
