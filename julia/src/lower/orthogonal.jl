# Factorisations with orthogonal factors, matrix by matrix: arrays as in `matrices.jl`.

lower_op!(l::Lowering, ::Val{:qr}, i, n, into) = call_matrices!(l, :qr_rows!, i, n, into)
lower_op!(l::Lowering, ::Val{:svd}, i, n, into) = call_matrices!(l, :svd_rows!, i, n, into)

"""
The factors of each matrix with at least as many rows as columns: Q, and below it R. Householder's reflections, with
LAPACK's signs.
"""
function qr_rows!(y, x)
    n, m = size(x, 1), size(x, 2)
    fill!(y, zero(eltype(y)))
    @inbounds for s in axes(x, 3)
        for i in 1:m, j in 1:n
            y[j, i, s] = x[j, i, s]
        end
        for k in 1:n  # the reflections take the place of what they make zero
            below = sum_of_squares(y, k, k + 1, m, s)
            top = y[k, k, s]
            if !iszero(below)
                scaled = -copysign(sqrt(top * top + below), top)
                for i in (k + 1):m
                    y[k, i, s] /= top - scaled
                end
                for j in (k + 1):n
                    reflect!(y, k, j, m, s)
                end
                y[k, k, s] = scaled
            end
            for j in k:n
                y[j, m + k, s] = y[j, k, s]
            end
        end
        for k in n:-1:1  # the product of the reflections, from the last on
            for j in k:n
                y[j, k, s] = j == k
            end
            for j in (k + 1):n
                reflect!(y, k, j, m, s)
            end
            factor = reflection(y, k, m, s)
            y[k, k, s] = 1 - factor
            for i in (k + 1):m
                y[k, i, s] *= -factor
            end
        end
    end
    return y
end

"The sum of the squares in column `k` of the rows from one to another."
function sum_of_squares(y, k::Int, from::Int, to::Int, s::Int)
    total = zero(eltype(y))
    @inbounds for i in from:to
        total += y[k, i, s] * y[k, i, s]
    end
    return total
end

"The factor of the reflection whose vector is 1 and then what column `k` has below its diagonal; 0 for none."
function reflection(y, k::Int, m::Int, s::Int)
    below = sum_of_squares(y, k, k + 1, m, s)
    return iszero(below) ? below : 2 / (1 + below)
end

"Apply the reflection of column `k` to column `j`."
function reflect!(y, k::Int, j::Int, m::Int, s::Int)
    along = y[j, k, s]
    @inbounds for i in (k + 1):m
        along += y[k, i, s] * y[j, i, s]
    end
    along *= reflection(y, k, m, s)
    @inbounds y[j, k, s] -= along
    @inbounds for i in (k + 1):m
        y[j, i, s] -= along * y[k, i, s]
    end
    return
end

"U of each matrix, below it a row of the singular values, from the greatest on, and below that V."
function svd_rows!(y, x)
    m = size(x, 2)
    for s in axes(x, 3)
        a = transpose(view(x, :, :, s))
        if !all(isfinite, a)
            y[:, :, s] .= NaN
            continue
        end
        found = svd!(Matrix(a))
        y[:, 1:m, s] = transpose(found.U)
        y[:, m + 1, s] = found.S
        y[:, (m + 2):end, s] = found.Vt
    end
    return y
end
