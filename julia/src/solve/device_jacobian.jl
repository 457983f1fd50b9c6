# The Jacobian of a field on a device: a block for each sample where samples do not depend on one another, else one block;
# and the systems of linear equations with it, by LU factorisations of all blocks at once.
#
# A device computes what a broadcast asks for, one entry of its result at a time. Here these are functions of whole arrays
# (in a `Ref`), which also write to what is their entry's own.

"Where the entries of a state stand in blocks, on its device."
struct Places{M<:AbstractMatrix{Int},V<:AbstractVector{Int}}
    entries::M  # (block, row): the entry of the state
    block::V    # of each entry of the state
    row::V
end

function Places(f::TracedField)
    blocks = samples_apart(f) ? f.samples : [collect(eachindex(f.u))]
    entries = [entries[i] for entries in blocks, i in eachindex(first(blocks))]
    block, row = similar(f.samples[1], length(f.u)), similar(f.samples[1], length(f.u))
    for at in CartesianIndices(entries)
        block[entries[at]], row[entries[at]] = Tuple(at)
    end
    on_device(x) = copyto!(similar(f.u, Int, size(x)), x)
    return Places(on_device(entries), on_device(block), on_device(row))
end

"A square matrix of the size of a state which is zero outside its blocks."
struct Blocks{T,A<:AbstractArray{T,3},P<:Places} <: AbstractMatrix{T}
    numbers::A  # (block, row, column)
    places::P
end

Base.size(x::Blocks) = (n = length(x.places.block); (n, n))

function Base.similar(x::Blocks, T::Type = eltype(x))
    n, d = size(x.places.entries)
    return Blocks(similar(x.numbers, T, n, d, d), x.places)
end

# What SciMLSensitivity makes of the prototype and of a Jacobian, for the adjoint's.
Base.copy(x::Blocks) = (y = similar(x); isempty(x.numbers) || copyto!(y.numbers, x.numbers); y)
Base.adjoint(x::Blocks) = isempty(x.numbers) ? x : LinearAlgebra.transpose!(similar(x), x)
LinearAlgebra.transpose!(y::Blocks, x::Blocks) = (permutedims!(y.numbers, x.numbers, (1, 3, 2)); y)
LinearAlgebra.lmul!(a::Number, x::Blocks) = (x.numbers .*= a; x)

"The largest sum of the magnitudes in a row, which a solver that switches estimates stiffness by."
LinearAlgebra.opnorm(x::Blocks, ::Real) = maximum(sum(abs, x.numbers; dims = 3))

"The Jacobian of a field on a device: a product for each row of the blocks."
struct BlockJacobian{F<:TracedField,V,P<:Places}
    field::F
    v::V
    places::P
end

BlockJacobian(f::TracedField) = BlockJacobian(f, similar(f.dz), Places(f))

"No numbers, but their places: what a solver makes its matrices like."
prototype(j::BlockJacobian) = Blocks(similar(j.v, 0, 0, 0), j.places)

function (j::BlockJacobian)(J::Blocks, u, p, t)
    rebind!(j.field, p)
    for i in axes(J.numbers, 2)
        j.v .= j.places.row .== i
        vjp!(j.field, j.v, u, t)
        view(J.numbers, :, i, :) .= getindex.(Ref(j.field.dz), j.places.entries)
    end
    return nothing
end

function derivatives(f::TracedField)
    jac = BlockJacobian(f)
    return (; jac, jac_prototype = prototype(jac), sparsity = nothing, tgrad = TimeGradient(f))
end

"`W = J - scale I`."
function subtract_identity!(W::Blocks, J::Blocks, scale)
    rows, columns = reshape(axes(J.numbers, 2), 1, :), reshape(axes(J.numbers, 3), 1, 1, :)
    W.numbers .= J.numbers .- ifelse.(rows .== columns, scale, zero(scale))
    return
end

# ---- LU factorisation -----------------------------------------------------------------------------------------

"The row of a block that has the largest number of column `k`, of those from `k` on."
function pivot(A, b, k)
    found = k
    for i in (k + 1):size(A, 2)
        @inbounds abs(A[b, i, k]) > abs(A[b, found, k]) && (found = i)
    end
    return found
end

"Exchange the numbers in column `j` of row `k` and of its pivot; that of row `k` is returned."
function exchange!(A, pivots, b, k, j)
    @inbounds begin
        p = pivots[b, k]
        upper, lower = A[b, k, j], A[b, p, j]
        A[b, p, j] = upper
        return lower
    end
end

multiplier(A, b, i, k) = @inbounds A[b, i, k] / A[b, k, k]
eliminated(A, b, i, j, k) = @inbounds A[b, i, j] - A[b, i, k] * A[b, k, j]

"Factorise a block; the last pivot is returned."
function factorise_block!(A, pivots, b)
    d = size(A, 2)
    @inbounds for k in 1:d
        pivots[b, k] = pivot(A, b, k)
        for j in 1:d
            A[b, k, j] = exchange!(A, pivots, b, k, j)
        end
        for i in (k + 1):d
            A[b, i, k] = multiplier(A, b, i, k)
        end
        for j in (k + 1):d, i in (k + 1):d
            A[b, i, j] = eliminated(A, b, i, j, k)
        end
    end
    return d
end

"Put the entries of the state that belong to a block in the order of its factorised rows; the first is returned."
function arrange!(order, entries, pivots, b)
    @inbounds begin
        for k in axes(order, 2)
            order[b, k] = entries[b, k]
        end
        for k in axes(order, 2)
            p = pivots[b, k]
            order[b, k], order[b, p] = order[b, p], order[b, k]
        end
        return order[b, 1]
    end
end

substituted(x, A, b, i, k) = @inbounds x[b, i] - A[b, i, k] * x[b, k]
quotient(x, A, b, k) = @inbounds x[b, k] / A[b, k, k]

"Solve for a block whose right-hand side is in `x`; the first number is returned."
function solve_block!(x, A, b)
    d = size(A, 2)
    @inbounds for k in 1:d, i in (k + 1):d
        x[b, i] = substituted(x, A, b, i, k)
    end
    @inbounds for k in d:-1:1
        x[b, k] = quotient(x, A, b, k)
        for i in 1:(k - 1)
            x[b, i] = substituted(x, A, b, i, k)
        end
    end
    return @inbounds x[b, 1]
end

"What solving with factorised blocks takes: the state's entries in the order of their rows, and memory."
struct Elimination{M<:AbstractMatrix{Int},X<:AbstractMatrix}
    order::M
    pivots::M
    x::X
end

Elimination(A::Blocks) = (e = A.places.entries; Elimination(similar(e), similar(e), similar(A.numbers, size(e))))

# Rows of a block that one entry of a result computes alone; of larger blocks all entries work on each column together.
const SMALL_BLOCK = 16

"Factorise blocks in place, with partial pivoting; of a block that is singular solutions are not finite."
function factorise!(A::Blocks, e::Elimination)
    (; numbers, places) = A
    blocks, d = axes(numbers, 1), size(numbers, 2)
    if d <= SMALL_BLOCK
        view(e.pivots, :, d) .= factorise_block!.(Ref(numbers), Ref(e.pivots), blocks)
    else
        for k in 1:d
            rows, columns, below = (k + 1):d, reshape(1:d, 1, :), reshape((k + 1):d, 1, :)
            view(e.pivots, :, k) .= pivot.(Ref(numbers), blocks, k)
            view(numbers, :, k, :) .= exchange!.(Ref(numbers), Ref(e.pivots), blocks, k, columns)
            k == d && break
            view(numbers, :, rows, k) .= multiplier.(Ref(numbers), blocks, below, k)
            view(numbers, :, rows, rows) .= eliminated.(Ref(numbers), blocks, below, reshape(rows, 1, 1, :), k)
        end
    end
    view(e.order, :, 1) .= arrange!.(Ref(e.order), Ref(places.entries), Ref(e.pivots), blocks)
    return
end

"Solve `A u = b` with factorised blocks."
function solve_blocks!(u, A::Blocks, e::Elimination, b)
    (; numbers, places) = A
    blocks, d = axes(numbers, 1), size(numbers, 2)
    e.x .= getindex.(Ref(b), e.order)
    if d <= SMALL_BLOCK
        view(e.x, :, 1) .= solve_block!.(Ref(e.x), Ref(numbers), blocks)
    else
        substitute!(rows, k) =
            isempty(rows) || (view(e.x, :, rows) .= substituted.(Ref(e.x), Ref(numbers), blocks, reshape(rows, 1, :), k))
        foreach(k -> substitute!((k + 1):d, k), 1:d)
        for k in d:-1:1
            view(e.x, :, k) .= quotient.(Ref(e.x), Ref(numbers), blocks, k)
            substitute!(1:(k - 1), k)
        end
    end
    u .= getindex.(Ref(e.x), places.block, places.row)
    return u
end
