# Matrix products, by BLAS.
#
# PyTorch's rows are Julia's columns: (x y)ᵀ = yᵀ xᵀ, so that the weights of `x @ W.T` come transposed. OpenBLAS takes up to four
# times as long for products with a transposed matrix, of small ones above all, as it does for those with a plain one. So
# the weights are turned once for all evaluations, by the prologue.

"Numbers of weights, and of an output of theirs, from which and up to which they are worth turning."
const LEAST_TURNED, MOST_TURNED = 8, 2^18

"Numbers of weights up to which they are turned for one sample too: more take as long as its evaluations gain."
const TURNED_FOR_ONE = 1024

"""
    turned_weights(graph)

The transpositions of weights that are worth their memory: nothing but matrix products reads them, as the second factor.
"""
function turned_weights(g::Graph)
    static = static_nodes(g)
    needed = live(g, [g.value; filter(!iszero, g.vjp)], Dict{Int,Int}())
    readers = Dict{Int,Vector{Node}}()
    foreach(i -> foreach(j -> push!(get!(() -> Node[], readers, j), g.nodes[i]), unique(operands(g.nodes[i]))), needed)
    return filter!(needed) do i
        n = g.nodes[i]
        static[i] && isswap(n) && length(n.shape) == 2 && n.dtype === :float && !(i in g.value || i in g.vjp) || return false
        all(d -> d isa Int, n.shape) && first(n.shape) >= LEAST_TURNED && prod(n.shape) <= MOST_TURNED || return false
        return all(r -> r.op === :mm && r.inputs[2] == i && r.inputs[1] != i, readers[i])
    end
end

"Whether weights that are a parameter are turned for a batch; those that are computed always are."
is_turned(weights, batch::Int) = batch > 1 || length(weights) <= TURNED_FOR_ONE

turn!(y, x) = permutedims!(y, x, (2, 1))
turn!(y::Matrix, x::Matrix) = LinearAlgebra.transpose!(y, x)

"`c = wᵀ x`, or `c += wᵀ x`, where `turned` is wᵀ if weights are turned for the batch."
multiply_turned!(c, turned, w, x, add::Bool, batch::Int) =
    is_turned(w, batch) ? multiply!(c, turned, x, add) : multiply!(c, transpose(w), x, add)

"Multiplications up to which OpenBLAS, on processors with AVX-512, packs no matrix for a product."
const UNPACKED = 1_000_000

"Terms that the numbers of a product need in each of its parts, so that the parts are worth it."
const LEAST_TERMS = 24

"""
    multiply!(c, a, b, add)

`c = a b`, or `c += a b`: on one thread in parts, where they are so small that OpenBLAS packs nothing.
"""
function multiply!(c, a, b, add::Bool)
    parts = parts_of_product(c, a, b)
    parts == 1 && return add ? mul!(c, a, b, true, true) : mul!(c, a, b)
    for i in 1:parts
        terms = part(axes(a, 2), i, parts)
        mul!(c, view(a, :, terms), rows_of(b, terms), true, add || i > 1)
    end
    return c
end

# Views that BLAS takes.
rows_of(x, part) = view(x, part, :)
rows_of(x::Transpose, part) = transpose(view(parent(x), :, part))
columns_of(x, part) = view(x, :, part)
columns_of(x::Transpose, part) = transpose(view(parent(x), part, :))

parts_of_product(c, a, b) = 1

function parts_of_product(c::Matrix{T}, a::Matrix{T}, b::Union{Matrix{T},Transpose{T,Matrix{T}}}) where {T<:BLAS.BlasFloat}
    k = size(a, 2)
    parts = cld(length(c) * k, UNPACKED)
    return parts > 1 && k >= parts * LEAST_TERMS && BLAS.get_num_threads() == 1 ? parts : 1
end

"Numbers of a transposed matrix up to which a loop takes its product with one column; OpenBLAS takes 0.1 µs for the least."
const LOOPED = 512

function multiply!(c::Matrix{T}, a::Transpose{T,Matrix{T}}, b::Matrix{T}, add::Bool) where {T<:AbstractFloat}
    length(a) <= LOOPED && size(b, 2) == 1 || return add ? mul!(c, a, b, true, true) : mul!(c, a, b)
    w = parent(a)
    n, m = size(w)
    length(c) == m && length(b) == n || throw(DimensionMismatch("a $m × $n matrix, a column of $(length(b)) and one of $(length(c))"))
    add || fill!(c, zero(T))
    @inbounds if n < 8
        for j in 1:n
            x = b[j]
            @simd ivdep for i in 1:m
                c[i] = muladd(w[j, i], x, c[i])
            end
        end
    else
        for i in 1:m
            sum = c[i]
            @simd for j in 1:n
                sum = muladd(w[j, i], b[j], sum)
            end
            c[i] = sum
        end
    end
    return c
end

"""
    multiply!(threads, c, a, b, add)

The same where threads share the operations: each has columns of `c`, or rows.
"""
function multiply!(threads::Int, c, a, b, add::Bool)
    n = clamp(2length(c) * size(a, 2) ÷ WORTH_A_THREAD, 1, threads)
    n == 1 && return multiply!(c, a, b, add)
    wide = size(c, 2) >= size(c, 1)
    on_threads(multiply_part!, n, c, a, b, add, wide, parted(axes(c, wide ? 2 : 1), n))
    return c
end

function multiply_part!(i, c, a, b, add, wide, parts)
    if wide
        mul!(columns_of(c, parts[i]), a, columns_of(b, parts[i]), true, add)
    else
        mul!(rows_of(c, parts[i]), rows_of(a, parts[i]), b, true, add)
    end
    return
end

multiply_turned!(threads::Int, c, turned, w, x, add::Bool, batch::Int) =
    is_turned(w, batch) ? multiply!(threads, c, turned, x, add) : multiply!(threads, c, transpose(w), x, add)

"A factor of a matrix product: a transposition is left to the product."
function factor!(l::Lowering, i::Int, transposed)
    n = l.graph.nodes[i]
    swapped = isswap(n) && !haskey(l.given, i)
    source = swapped ? n.inputs[1] : i
    # Columns of a matrix that are some apart are as good as contiguous ones.
    s = l.graph.nodes[source]
    strided = s.op === :slice && length(s.shape) == 2 && s.attrs["step"] == 1
    b = bufsym(materialise!(l, source; contiguous = !strided))
    return swapped ? :($transposed($b)) : b
end

function lower_op!(l::Lowering, ::Val{:mm}, i, n, into)
    x, y = factor!(l, n.inputs[1], :transpose), factor!(l, n.inputs[2], :transpose)
    b = destination!(l, n, into)
    starts = haskey(l.bias, i)
    if starts
        materialise!(l, l.bias[i])
        assign!(l, b, n.shape, l.bias[i])
    end
    weights = haskey(l.given, n.inputs[2]) ? turned_parameter(l, n.inputs[2]) : nothing
    shared = l.threads > 1 ? (l.threads,) : ()
    if weights === nothing
        emit!(l, :(multiply!($(shared...), $(bufsym(b)), $y, $x, $starts)))
    else
        emit!(l, :(multiply_turned!($(shared...), $(bufsym(b)), $y, $(bufsym(l.buffer[weights])), $x, $starts, batch)))
    end
    l.buffer[i] = b
end

"The parameter whose transposition a node is, if that is made for some batches alone; else `nothing`."
function turned_parameter(l::Lowering, i::Int)
    source = i in l.turned ? only(l.graph.nodes[i].inputs) : 0
    return source != 0 && l.graph.nodes[source].op === :input ? source : nothing
end

function lower_op!(l::Lowering, ::Val{:bmm}, i, n, into)
    x, y = factor!(l, n.inputs[1], :batched_transpose), factor!(l, n.inputs[2], :batched_transpose)
    b = destination!(l, n, into)
    emit!(l, :(batched_mul!($(bufsym(b)), $y, $x)))
    l.buffer[i] = b
end
