# Linear algebra, matrix by matrix.
#
# PyTorch's row `i` of a matrix lies in memory as Julia's column `i`: `m[j, i, s]` is the entry in row i and column j of
# sample s. Arrays have three dimensions here, the last of which counts the samples. What cannot be solved gives NaN or
# infinity. On a device they go by way of the processor.

"A buffer of matrices in three dimensions."
function matrices!(l::Lowering, b::Int, shape)
    return bufsym(reshaped!(l, b, grouped(shape, [[1], [2], collect(3:length(shape))])))
end

"Call `f!(result, operands..., options...)` on arrays of matrices."
function call_matrices!(l::Lowering, f!::Symbol, i, n, into, options...)
    xs = map(n.inputs) do j
        shape = l.graph.nodes[j].shape
        b = materialise!(l, j; contiguous = true)
        # Pivots are one number a row.
        length(shape) == length(n.shape) - 1 ? matrices!(l, b, Dim[1; shape]) : matrices!(l, b, shape)
    end
    b = destination!(l, n, into)
    emit!(l, :(onhost!($f!, $(matrices!(l, b, n.shape)), $(xs...), $(options...))))
    l.buffer[i] = b
end

onhost!(f!::F, y::Host, xs...) where {F} = f!(y, xs...)
onhost!(f!::F, y, xs...) where {F} = copyto!(y, f!(Array(y), map(x -> x isa AbstractArray ? Array(x) : x, xs)...))

lower_op!(l::Lowering, ::Val{:lu}, i, n, into) = call_matrices!(l, :lu_rows!, i, n, into)

function lower_op!(l::Lowering, ::Val{:lu_solve}, i, n, into)
    call_matrices!(l, n.attrs["adjoint"] === true ? :lu_adjoint_solve! : :lu_solve!, i, n, into)
end

function lower_op!(l::Lowering, ::Val{:solve_triangular}, i, n, into)
    f! = n.attrs["upper"] === true ? :upper_solve! : :lower_solve!
    call_matrices!(l, f!, i, n, into, n.attrs["unit"] === true)
end

lower_op!(l::Lowering, ::Val{:cholesky}, i, n, into) = call_matrices!(l, :cholesky_rows!, i, n, into)
lower_op!(l::Lowering, ::Val{:matrix_exp}, i, n, into) = call_matrices!(l, :exponentials!, i, n, into)
lower_op!(l::Lowering, ::Val{:eigh}, i, n, into) = call_matrices!(l, :eigen_rows!, i, n, into)

# ---- LU -------------------------------------------------------------------------------------------------------

"Add a multiple of row `j` to row `i`, from the column `from` on."
function addrow!(x, i::Int, factor, j::Int, s::Int, from::Int = 1)
    @inbounds @simd ivdep for c in from:size(x, 1)
        x[c, i, s] += factor * x[c, j, s]
    end
    return
end

function swaprows!(x, i::Int, j::Int, s::Int)
    i == j && return
    @inbounds for c in axes(x, 1)
        x[c, i, s], x[c, j, s] = x[c, j, s], x[c, i, s]
    end
    return
end

function scalerow!(x, i::Int, factor, s::Int)
    @inbounds for c in axes(x, 1)
        x[c, i, s] *= factor
    end
    return
end

"The factors of each matrix with partial pivoting, and in a further row the row that each is exchanged with."
function lu_rows!(y, x)
    n = size(x, 1)
    @inbounds for s in axes(x, 3)
        for i in 1:n, j in 1:n
            y[j, i, s] = x[j, i, s]
        end
        for k in 1:n
            p = k
            for i in (k + 1):n
                abs(y[k, i, s]) > abs(y[k, p, s]) && (p = i)
            end
            swaprows!(y, k, p, s)
            y[k, n + 1, s] = p
            iszero(y[k, k, s]) && continue
            for i in (k + 1):n
                factor = y[k, i, s] / y[k, k, s]
                y[k, i, s] = factor
                addrow!(y, i, -factor, k, s, k + 1)
            end
        end
    end
    return y
end

function lu_solve!(y, lu, pivots, b)
    n = size(lu, 1)
    copyto!(y, b)
    @inbounds for s in axes(lu, 3)
        for k in 1:n
            exchange!(y, pivots, k, s)
        end
        forward!(y, lu, s, true)
        back!(y, lu, s, false)
    end
    return y
end

function lu_adjoint_solve!(y, lu, pivots, b)
    n = size(lu, 1)
    copyto!(y, b)
    @inbounds for s in axes(lu, 3)
        for i in 1:n
            for j in 1:(i - 1)
                addrow!(y, i, -lu[i, j, s], j, s)
            end
            scalerow!(y, i, inv(lu[i, i, s]), s)
        end
        for i in n:-1:1, j in (i + 1):n
            addrow!(y, i, -lu[i, j, s], j, s)
        end
        for k in n:-1:1
            exchange!(y, pivots, k, s)
        end
    end
    return y
end

"Exchange the rows that a pivot names; one that is no row makes NaN of the result."
function exchange!(y, pivots, k::Int, s::Int)
    p = position(pivots[1, k, s] - 1, size(y, 2))
    p == 0 ? scalerow!(y, k, eltype(y)(NaN), s) : swaprows!(y, k, p, s)
    return
end

# ---- triangles ------------------------------------------------------------------------------------------------

function forward!(y, a, s::Int, unit::Bool)
    @inbounds for i in axes(a, 1)
        for j in 1:(i - 1)
            addrow!(y, i, -a[j, i, s], j, s)
        end
        unit || scalerow!(y, i, inv(a[i, i, s]), s)
    end
    return
end

function back!(y, a, s::Int, unit::Bool)
    n = size(a, 1)
    @inbounds for i in n:-1:1
        for j in (i + 1):n
            addrow!(y, i, -a[j, i, s], j, s)
        end
        unit || scalerow!(y, i, inv(a[i, i, s]), s)
    end
    return
end

function lower_solve!(y, a, b, unit::Bool)
    copyto!(y, b)
    foreach(s -> forward!(y, a, s, unit), axes(a, 3))
    return y
end

function upper_solve!(y, a, b, unit::Bool)
    copyto!(y, b)
    foreach(s -> back!(y, a, s, unit), axes(a, 3))
    return y
end

"The lower factor of each matrix, of which the lower triangle is read."
function cholesky_rows!(y, x)
    n = size(x, 1)
    fill!(y, zero(eltype(y)))
    @inbounds for s in axes(x, 3), i in 1:n, j in 1:i
        total = x[j, i, s]
        for k in 1:(j - 1)
            total -= y[k, i, s] * y[k, j, s]
        end
        if i == j
            y[i, i, s] = total > 0 ? sqrt(total) : eltype(y)(NaN)
        else
            y[j, i, s] = total / y[j, j, s]
        end
    end
    return y
end

# ---- exponentials, eigenvalues --------------------------------------------------------------------------------

"The exponential of each matrix; that of the transposed one is the transposed of it."
function exponentials!(y, x)
    for s in axes(x, 3)
        m = x[:, :, s]
        # `exp` refuses what is not finite.
        y[:, :, s] = all(isfinite, m) ? exp(m) : fill!(m, NaN)
    end
    return y
end

"The eigenvalues of each symmetric matrix, from the least on, in a first row, and the eigenvectors as columns behind it."
function eigen_rows!(y, x)
    for s in axes(x, 3)
        m = x[:, :, s]
        if !all(isfinite, m)
            y[:, :, s] .= NaN
            continue
        end
        found = eigen!(Symmetric(m, :U))  # the lower triangle, PyTorch's
        y[:, 1, s] = found.values
        y[:, 2:end, s] = transpose(found.vectors)
    end
    return y
end
