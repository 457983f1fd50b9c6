# Indexing by what is computed, sorting, and places in tables.
#
# An index is an array of numbers that count from 0, as PyTorch's do. One that points outside of its dimension, or is no
# number, gives NaN. Arrays have three dimensions here: what lies before the dimension in question, that one, and what
# lies behind it.

"The shape in three dimensions, of which the second is `d`."
threefold(shape, d) = grouped(shape, [collect(1:(d - 1)), [d], collect((d + 1):length(shape))])

"A buffer of a node in three dimensions."
function threefold!(l::Lowering, b::Int, shape, d)
    return bufsym(reshaped!(l, b, threefold(shape, d)))
end

function operand!(l::Lowering, j::Int, d::Int)
    b = materialise!(l, j; contiguous = true)
    return threefold!(l, b, l.graph.nodes[j].shape, d)
end

"Call `f!(result, operands..., options...)` on arrays in three dimensions; `d` is Julia's number of that of the result."
function call_along!(l::Lowering, f!::Symbol, i, n, into, d, options...)
    xs = [operand!(l, j, d) for j in n.inputs]
    b = destination!(l, n, into)
    emit!(l, :($f!($(threefold!(l, b, n.shape, d)), $(xs...), $(options...))))
    l.buffer[i] = b
end

lower_op!(l::Lowering, ::Val{:gather}, i, n, into) = call_along!(l, :gather_along!, i, n, into, juliadim(n, n.attrs["dim"]))

function lower_op!(l::Lowering, ::Val{:scatter_add}, i, n, into)
    call_along!(l, :scatter_along!, i, n, into, juliadim(n, n.attrs["dim"]), :(+))
end

function lower_op!(l::Lowering, ::Val{:scatter}, i, n, into)
    call_along!(l, :scatter_along!, i, n, into, juliadim(n, n.attrs["dim"]), :latter)
end

function lower_op!(l::Lowering, ::Val{:argsort}, i, n, into)
    descending = n.attrs["descending"] === true
    call_along!(l, :order_along!, i, n, into, juliadim(n, n.attrs["dim"]), descending ? :follows : :precedes)
end

function lower_op!(l::Lowering, ::Val{:searchsorted}, i, n, into)
    knots, x = l.graph.nodes[n.inputs[1]], l.graph.nodes[n.inputs[2]]
    table = bufsym(reshaped!(l, materialise!(l, n.inputs[1]; contiguous = true), grouped(knots.shape, [[1], collect(2:length(knots.shape))])))
    # One table for all values, or one for those along the last dimension (PyTorch's).
    groups = length(knots.shape) == 1 ? [collect(1:length(x.shape)), Int[]] : [[1], collect(2:length(x.shape))]
    value = bufsym(reshaped!(l, materialise!(l, n.inputs[2]; contiguous = true), grouped(x.shape, groups)))
    b = destination!(l, n, into)
    to = bufsym(reshaped!(l, b, grouped(n.shape, groups)))
    emit!(l, :(search_sorted!($to, $table, $value, $(n.attrs["right"] === true))))
    l.buffer[i] = b
end

# ---- on a processor -------------------------------------------------------------------------------------------

latter(_, new) = new

"The place that an index counted from 0 points to, 0 for one that is none."
function position(index, n::Int)
    return 0 <= index < n ? unsafe_trunc(Int, index) + 1 : 0
end

function gather_along!(y::Host, x::Host, index::Host)
    n, nothing_there = size(x, 2), eltype(y)(NaN)
    @inbounds for c in axes(y, 3), j in axes(y, 2), a in axes(y, 1)
        k = position(index[a, j, c], n)
        y[a, j, c] = k == 0 ? nothing_there : x[a, k, c]
    end
    return y
end

function scatter_along!(y::Host, x::Host, index::Host, f::F) where {F}
    n = size(y, 2)
    fill!(y, zero(eltype(y)))
    @inbounds for c in axes(x, 3), j in axes(x, 2), a in axes(x, 1)
        k = position(index[a, j, c], n)
        if k == 0
            y[a, 1, c] = eltype(y)(NaN)
        else
            y[a, k, c] = f(y[a, k, c], x[a, j, c])
        end
    end
    return y
end

# NaN is greater than all numbers, and zero is equal to minus zero.
precedes(a, b) = a < b || (isnan(b) && !isnan(a))
follows(a, b) = precedes(b, a)

"Where the entries along the second dimension are, in their order; equal ones stay in theirs."
function order_along!(y::Host, x::Host, before::F) where {F}
    n = size(x, 2)
    n > 64 && return sort_along!(y, x, before)
    @inbounds for c in axes(x, 3), a in axes(x, 1)
        for j in 1:n
            k, value = j, x[a, j, c]
            while k > 1 && before(value, x[a, unsafe_trunc(Int, y[a, k - 1, c]) + 1, c])
                y[a, k, c] = y[a, k - 1, c]
                k -= 1
            end
            y[a, k, c] = j - 1
        end
    end
    return y
end

function sort_along!(y, x, before)
    places = zeros(Int, size(x, 2))
    for c in axes(x, 3), a in axes(x, 1)
        sortperm!(places, view(x, a, :, c); lt = before, alg = MergeSort)
        view(y, a, :, c) .= places .- 1
    end
    return y
end

"How many entries of a table, `(knots, 1 or m)`, come before each value, `(n, m)`; equal ones do if `right`."
function search_sorted!(y::Host, table::Host, x::Host, right::Bool)
    @inbounds for c in axes(x, 2), a in axes(x, 1)
        column, value = min(c, size(table, 2)), x[a, c]
        low, high = 0, size(table, 1)
        while low < high
            middle = (low + high) ÷ 2 + 1
            knot = table[middle, column]
            if precedes(knot, value) || (right && !precedes(value, knot))
                low = middle
            else
                high = middle - 1
            end
        end
        y[a, c] = low
    end
    return y
end

# ---- on a device ----------------------------------------------------------------------------------------------

along(x, k::Int) = view(x, :, k:k, :)

function gather_along!(y, x, index)
    y .= eltype(y)(NaN)
    for k in axes(x, 2)
        y .= ifelse.(floor.(index) .== k - 1, along(x, k), y)
    end
    return y
end

function scatter_along!(y, x, index, f::F) where {F}
    fill!(y, zero(eltype(y)))
    n = size(y, 2)
    for j in axes(x, 2), k in axes(y, 2)
        here = floor.(along(index, j)) .== k - 1
        along(y, k) .= ifelse.(here, f.(along(y, k), along(x, j)), along(y, k))
    end
    for j in axes(x, 2)
        outside = .!((along(index, j) .>= 0) .& (along(index, j) .< n))
        along(y, 1) .= ifelse.(outside, eltype(y)(NaN), along(y, 1))
    end
    return y
end

# These go by way of the processor.
order_along!(y, x, before) = copyto!(y, order_along!(Array(y), Array(x), before))
search_sorted!(y, table, x, right) = copyto!(y, search_sorted!(Array(y), Array(table), Array(x), right))
