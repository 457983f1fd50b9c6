# Programs of few numbers as straight code.
#
# An evaluation of a field of a few numbers, as of one sample of a mechanism, takes some nanoseconds; loops over arrays that
# short, and arrays between them, take several times as long. So where a program is for one sample, and its numbers are
# few, each of them is a variable.

"Operations up to which a program is straight code, and how many of them may be such that loops compute several at once."
const MOST_STRAIGHT, MOST_VECTORISED = 128, 4

const VECTORISED = (:exp, :expm1, :log1p, :tanh, :sigmoid)

"State of one translation. What is computed is an array of variables and literals for each node, in the node's shape."
mutable struct Straight
    const computation::Computation
    const batch::Int
    const numbers::Dict{Int,Array{Any}}      # by node
    const read::Dict{Tuple{Int,Int},Symbol}  # buffer and position => variable
    const statements::Vector{Expr}
    vectorised::Int
end

"Thrown where a program is no straight code."
struct NotStraight <: Exception end

"""
    straight(computation, batch)

What is computed for a batch, as a function of the given buffers, the time and the batch size; `nothing` where loops do as well.
"""
function straight(c::Computation, batch::Int)
    batch <= 1 || return nothing
    s = Straight(c, batch, Dict(), Dict(), Expr[], 0)
    try
        stores = [:($(bufsym(b))[$k] = $x) for (i, b) in c.outputs for (k, x) in enumerate(numbers!(s, i))]
        length(stores) <= MOST_STRAIGHT || return nothing
        buffers = unique!(sort!([first.(keys(s.read)); last.(c.outputs)]))
        unpacked = [:($(bufsym(b)) = buffers[$b]) for b in buffers]
        # All is read before anything is written.
        return compiled(c.T, (:buffers, :t, :batch), Expr(:block, unpacked..., :(@inbounds $(Expr(:block, s.statements..., stores...)))))
    catch error
        error isa NotStraight || rethrow()
        return nothing
    end
end

"A node's numbers, computed now if they are not yet."
numbers!(s::Straight, i::Int) = get!(() -> new_numbers!(s, i), s.numbers, i)

function new_numbers!(s::Straight, i::Int)
    c = s.computation
    n = c.graph.nodes[i]
    istime(c.graph, n) && return fill!(Array{Any}(undef), :t)
    shape = sizes(n.shape, s.batch)
    0 < prod(shape) <= MOST_STRAIGHT || throw(NotStraight())
    # Weights that the prologue turns, which it may leave out, are as good as they are.
    if haskey(c.given, i) && !(i in c.turned)
        return reshape(Any[read!(s, c.given[i], k) for k in 1:prod(shape)], shape)
    end
    return ispointwise(n) ? pointwise!(s, n, shape) : numbers_of!(s, Val(n.op), n, shape)
end

read!(s::Straight, b::Int, k::Int) = get!(() -> variable!(s, :($(bufsym(b))[$k])), s.read, (b, k))

"A new variable for an expression."
function variable!(s::Straight, e)
    length(s.statements) < MOST_STRAIGHT || throw(NotStraight())
    name = Symbol(:x, length(s.statements) + 1)
    push!(s.statements, :($name = $e))
    return name
end

function pointwise!(s::Straight, n::Node, shape)
    operands = [operand!(s, j, shape) for j in n.inputs]
    n.op in (:expand, :full) && return operands[1]
    if n.op in VECTORISED && (s.vectorised += prod(shape)) > MOST_VECTORISED
        throw(NotStraight())
    end
    return Any[variable!(s, called(n, s.computation.T, (x[c] for x in operands)...)) for c in CartesianIndices(shape)]
end

"An operand's numbers, spread over a shape."
function operand!(s::Straight, i, shape)
    i isa Int || return fill!(Array{Any}(undef, shape), literal(i, s.computation.T))
    x = numbers!(s, i)
    return Any[x[(min(c[d], size(x, d)) for d in 1:ndims(x))...] for c in CartesianIndices(shape)]
end

function called(n::Node, T, arguments...)
    n.op === :cast && return :($T($(arguments[1])))
    n.op === :pow && n.inputs[2] isa Literal && return scalar(literal_pow(arguments[1], n.inputs[2].value, T), Dict())
    return Expr(:call, POINTWISE[n.op], arguments...)
end

# ---- what is not pointwise --------------------------------------------------------------------------------------

numbers_of!(::Straight, ::Val, n, shape) = throw(NotStraight())

function numbers_of!(s::Straight, ::Val{:const}, n, shape)
    n.dtype === :int && throw(NotStraight())
    return reshape(Any[eltype_of(n, s.computation.T)(number(x)) for x in n.attrs["data"]], shape)
end

numbers_of!(s::Straight, ::Val{:reshape}, n, shape) = reshape(numbers!(s, n.inputs[1]), shape)

numbers_of!(s::Straight, ::Val{:permute}, n, shape) = permutedims(numbers!(s, n.inputs[1]), permutation(n))

"The part of an array that a node cuts out, or writes to."
function part_at(s::Straight, x, n::Node)
    start, stop, step = bounds(n)
    return selectdim(x, juliadim(n, n.attrs["dim"]), (dimsize(start, s.batch) + 1):step:dimsize(stop, s.batch))
end

numbers_of!(s::Straight, ::Val{:slice}, n, shape) = Array{Any}(part_at(s, numbers!(s, n.inputs[1]), n))

function numbers_of!(s::Straight, ::Val{:embed}, n, shape)
    x = fill!(Array{Any}(undef, shape), zero(eltype_of(n, s.computation.T)))
    part_at(s, x, n) .= numbers!(s, n.inputs[1])
    return x
end

numbers_of!(s::Straight, ::Val{:cat}, n, shape) =
    Array{Any}(cat((numbers!(s, j) for j in n.inputs)...; dims = juliadim(n, n.attrs["dim"])))

numbers_of!(s::Straight, ::Val{:index_select}, n, shape) =
    Array{Any}(selectdim(numbers!(s, n.inputs[1]), juliadim(n, n.attrs["dim"]), positions(n)))

# As in `products.jl`, PyTorch's rows are columns here.
function numbers_of!(s::Straight, ::Val{:mm}, n, shape)
    x, y = numbers!(s, n.inputs[1]), numbers!(s, n.inputs[2])
    term(c) = k -> (y[c[1], k], x[k, c[2]])
    return Any[inner!(s, map(term(c), axes(x, 1))) for c in CartesianIndices(shape)]
end

inner!(s::Straight, terms) =
    foldl((sum, (a, b)) -> variable!(s, sum === nothing ? :($a * $b) : :(muladd($a, $b, $sum))), terms; init = nothing)

function numbers_of!(s::Straight, ::Val{:sum}, n, shape)
    x = numbers!(s, n.inputs[1])
    whole = s.computation.graph.nodes[n.inputs[1]]
    over = [juliadim(whole, d) for d in n.attrs["dims"]]
    slices = eachslice(x; dims = Tuple(d for d in 1:ndims(x) if !(d in over)))
    return reshape(Any[foldl((a, b) -> variable!(s, :($a + $b)), slice) for slice in slices], shape)
end
