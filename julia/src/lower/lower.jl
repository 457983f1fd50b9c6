# From a graph to a straight program over preallocated buffers.
#
# Chains of pointwise operations become one broadcast, matrix products `mul!` into a buffer, views alias the memory
# of what they view. Everything is `similar`, broadcast, `mul!` and NNlib calls, so that the same program runs on any
# strided array type.

"""
How to make one buffer: `make(like, batch, buffers)`; `contiguous` when it can be reshaped in place, `alias` when it is
other buffers' memory.
"""
struct BufferSpec
    make::Any
    contiguous::Bool
    alias::Bool
end

"What a program computes: nodes of a graph, from those that the given buffers hold, into such buffers; see `lower`."
struct Computation
    graph::Graph
    T::DataType
    given::Dict{Int,Int}
    outputs::Vector{Pair{Int,Int}}  # none where the program keeps a result in a buffer of its own
    turned::Vector{Int}
end

"A program: statements over buffers, and the recipe of the buffers behind the given ones."
struct Program
    run::Any              # (buffers::Tuple, t, batch) -> nothing
    specs::Vector{BufferSpec}
    outputs::Vector{Int}  # buffer of each output
    computation::Computation
end

"Part of a buffer: `start:step:stop` (Python's meaning) along Julia's dimension `d` of its shape."
struct Part
    whole::Int
    shape::Vector{Dim}
    d::Int
    start::Dim
    stop::Dim
    step::Int
end

"State of one lowering. Buffers are numbered from 1; the given ones come first."
mutable struct Lowering
    graph::Graph
    T::DataType
    given::Dict{Int,Int}             # node => buffer that the caller fills
    specs::Vector{BufferSpec}        # of buffers behind the given ones
    n_given::Int
    buffer::Dict{Int,Int}            # node => buffer
    contiguous::Vector{Bool}         # by buffer
    parts::Dict{Int,Part}            # what the buffers are that are parts of contiguous ones
    aliases::Dict{Tuple{Int,Vector{Dim}},Int}  # buffer with another shape => its alias
    virtual::Set{Int}                # pointwise nodes that are computed where they are used
    statements::Vector{Expr}
    users::Dict{Int,Vector{Int}}     # node => the nodes that read it
    outputs::Set{Int}                # nodes whose values are asked for
    bias::Dict{Int,Int}              # product => the bias that it starts from
    sums::Dict{Int,Int}              # sum of product and bias => the product
    rows::Dict{Int,Int}              # product with a convolution's weights' derivative => buffer with its sums, see `Rows`
    turned::Vector{Int}              # transpositions of weights that the prologue makes, see `turned_weights`
    batch::Int                       # for several threads: the batch size
    threads::Int                     # that share operations on large arrays
end

ispointwise(n::Node) = haskey(POINTWISE, n.op) || n.op in (:cast, :expand, :full)

bufsym(i::Int) = Symbol(:b, i)

function newbuffer!(l::Lowering, make; contiguous = true, alias = true)
    push!(l.specs, BufferSpec(make, contiguous, alias))
    push!(l.contiguous, contiguous)
    return l.n_given + length(l.specs)
end

sizes(shape, batch) = ntuple(i -> dimsize(shape[i], batch), length(shape))
eltype_of(n::Node, T) = n.dtype === :bool ? Bool : T

"A buffer of a node's own, zero at first."
function own!(l::Lowering, n::Node)
    shape, E = n.shape, eltype_of(n, l.T)
    return newbuffer!(l, (like, batch, _) -> fill!(similar(like, E, sizes(shape, batch)), zero(E)); alias = false)
end

"An alias of a buffer with another shape."
function reshaped!(l::Lowering, b::Int, shape)
    return get!(l.aliases, (b, collect(Dim, shape))) do
        newbuffer!(l, (_, batch, buffers) -> reshape(buffers[b], sizes(shape, batch)))
    end
end

"An alias of part of a buffer."
function part!(l::Lowering, p::Part)
    make = function (_, batch, buffers)
        whole = buffers[p.whole]
        range = (dimsize(p.start, batch) + 1):p.step:dimsize(p.stop, batch)
        return view(whole, ntuple(i -> i == p.d ? range : Colon(), ndims(whole))...)
    end
    b = newbuffer!(l, make; contiguous = false)
    l.contiguous[p.whole] && (l.parts[b] = p)
    return b
end

juliadim(n::Node, torchdim) = length(n.shape) - Int(torchdim)

# ---- which nodes get a buffer ---------------------------------------------------------------------------------

function live(g::Graph, outputs, given)
    needed, stack = Set{Int}(), Int[o for o in outputs if o != 0]
    while !isempty(stack)
        i = pop!(stack)
        i in needed && continue
        push!(needed, i)
        haskey(given, i) || append!(stack, operands(g.nodes[i]))
    end
    return sort!(collect(needed))
end

isswap(n::Node) = n.op === :permute && collect(Int, n.attrs["dims"]) in ([1, 0], [0, 2, 1])

"Choose the pointwise nodes that are computed where they are used."
function plan!(l::Lowering, order)
    g = l.graph
    users = l.users = Dict(i => Int[] for i in order)
    for i in order, j in (haskey(l.given, i) ? Int[] : unique(operands(g.nodes[i])))
        push!(users[j], i)
    end
    leaves, mixed = Dict{Int,Int}(), Set{Int}()
    for i in order
        n = g.nodes[i]
        (haskey(l.given, i) || !ispointwise(n) || affine!(l, i, n)) && (leaves[i] = 1; continue)
        leaves[i] = max(1, sum(j -> j in l.virtual ? leaves[j] : 1, operands(n); init = 0))
        inline = !(i in l.outputs) && all(j -> ispointwise(g.nodes[j]) || g.nodes[j].op in (:cat, :embed), users[i])
        cheap = n.op in CHEAP && leaves[i] <= 3
        spread = any(j -> length(g.nodes[j].shape) != length(n.shape) || g.nodes[j].shape != n.shape, users[i])
        is_mixed = any(j -> j in l.virtual ? j in mixed : !(g.nodes[j].shape in (n.shape, Dim[])), operands(n))
        slow = is_mixed && has_short_rows(n) && any(j -> isdear(g.nodes[j]), users[i])
        if inline && !slow && (n.op in (:expand, :full) || (leaves[i] <= 8 && (cheap || (length(users[i]) == 1 && !spread))))
            push!(l.virtual, i)
            is_mixed && push!(mixed, i)
        else
            leaves[i] = 1
        end
    end
    return
end

"""
Whether the inner loop over operands of several shapes is too short to be vectorised. Cheap operations may stand in it, on
whose results dear ones are then one long loop.
"""
has_short_rows(n::Node) = length(n.shape) > 1 && first(n.shape) isa Int && first(n.shape) < 16

isdear(n::Node) = ispointwise(n) && !(n.op in CHEAP)

"""
Whether a node adds a bias to a matrix product that nothing else reads; the product, made where the sum stands, then
starts from the bias. A chain of operations on the sum is then one over vectors, where a broadcast of the bias would
keep it from being vectorised.
"""
function affine!(l::Lowering, i::Int, n::Node)
    n.op === :add && length(n.shape) == 2 || return false
    for (product, bias) in (n.inputs, reverse(n.inputs))
        product isa Int && bias isa Int || continue
        p = l.graph.nodes[product]
        p.op === :mm && p.shape == n.shape && l.graph.nodes[bias].shape == n.shape[1:1] || continue
        (haskey(l.given, product) || product in l.outputs || l.users[product] != [i]) && continue
        l.bias[product] = bias
        l.sums[i] = product
        return true
    end
    return false
end

# ---- expressions ----------------------------------------------------------------------------------------------

literal(x::Literal, T) = x.value isa Bool ? x.value : T(x.value)
literal(x::SizeOf, T) = :($T($(x.dim[1]) * batch + $(x.dim[2])))

istime(g::Graph, n::Node) = n.op === :input && g.inputs[n.attrs["index"] + 1].kind === :t

"The expression of an operand inside a broadcast; `leaf(buffer)` is the name under which a buffer is read."
function expression(l::Lowering, i, leaf)
    i isa Int || return literal(i, l.T)
    n = l.graph.nodes[i]
    istime(l.graph, n) && return :t
    i in l.virtual || return leaf(l.buffer[i])
    n.op === :full && return literal(n.inputs[1], l.T)
    if n.op === :pow && n.inputs[2] isa Literal
        return literal_pow(expression(l, n.inputs[1], leaf), n.inputs[2].value, l.T)
    end
    arguments = [expression(l, j, leaf) for j in n.inputs]
    n.op === :expand && return arguments[1]
    n.op === :cast && return :($(l.T).($(arguments[1])))
    return Expr(:., POINTWISE[n.op], Expr(:tuple, arguments...))
end

"The nodes with a buffer that an expression reads."
function sources(l::Lowering, i, found = Int[])
    i isa Int || return found
    if i in l.virtual
        foreach(j -> sources(l, j, found), l.graph.nodes[i].inputs)
    elseif !istime(l.graph, l.graph.nodes[i])
        push!(found, i)
    end
    return found
end

"""
    lower(graph, T, given, n_given, outputs; turned, batch, threads) -> Program

Lower what `outputs` need to a program.

# Arguments
- `T`: element type.
- `given`: node => buffer (of `1:n_given`) that the caller fills before a run.
- `outputs`: pairs `node => buffer`; the buffer (of `1:n_given`) is written, or with `nothing` the program
  keeps the result in a buffer of its own, listed in `Program.outputs`.
- `turned`: transpositions of weights that are made once, see `turned_weights`.
- `batch`, `threads`: of several threads, which share operations on large arrays; the batch size is then settled.
"""
function lower(
    graph::Graph, T::DataType, given::Dict{Int,Int}, n_given::Int, outputs; turned = Int[], batch::Int = 0, threads::Int = 1
)
    wanted = [first(o) for o in outputs]
    order = live(graph, wanted, given)
    l = Lowering(graph, T, given, BufferSpec[], n_given, copy(given), trues(n_given), Dict(), Dict(), Set(), Expr[], Dict(), Set(wanted), Dict(), Dict(), Dict(), turned, batch, threads)
    plan!(l, order)
    place = Dict{Int,Int}()
    for (i, b) in outputs
        b === nothing || haskey(given, i) || get!(place, i, b)
    end
    for i in order
        (haskey(given, i) || i in l.virtual || istime(graph, graph.nodes[i])) && continue
        lower!(l, i, get(place, i, nothing))
    end
    for (i, b) in outputs
        if b !== nothing
            istime(graph, graph.nodes[i]) || materialise!(l, i)
            get(l.buffer, i, 0) == b || assign!(l, b, graph.nodes[i].shape, i)
        else
            materialise!(l, i; contiguous = true)
        end
    end
    n = n_given + length(l.specs)
    used = Set{Symbol}()
    foreach(s -> symbols!(used, s), l.statements)
    unpack = [:($(bufsym(k)) = buffers[$k]) for k in 1:n if bufsym(k) in used]
    body = Expr(:block, unpack..., l.statements...)
    placed = all(o -> o[2] !== nothing, outputs) ? Pair{Int,Int}[outputs...] : Pair{Int,Int}[]
    computation = Computation(graph, T, given, placed, turned)
    return Program(compiled(T, (:buffers, :t, :batch), body), l.specs, [get(l.buffer, i, 0) for i in wanted], computation)
end

"""
    compiled(T, arguments, body)

A function of numbers of type `T`. RuntimeGeneratedFunctions takes functions for the same whose bodies are printed alike, and
prints 0.1f0 as 0.1: the type stands in the body, so that no function has the numbers of another type's.
"""
function compiled(T::DataType, arguments, body::Expr)
    return @RuntimeGeneratedFunction(:(function ($(arguments...),)
        $T
        $body
        return nothing
    end))
end

function symbols!(found, e)
    e isa Symbol && push!(found, e)
    e isa Expr && foreach(a -> symbols!(found, a), e.args)
    return found
end
