# Pointwise expressions into buffers: loops where the buffers are the processor's memory, a broadcast elsewhere.
#
# Julia's broadcasts of more than two arrays, or of arrays of several shapes, are not vectorised; loops are, when
# neighbouring dimensions that all operands have, or lack, are taken as one.

"Arrays over the processor's memory."
const Host = Union{Array,SubArray{<:Any,<:Any,<:Array}}

"""
    assign!(lowering, buffer, shape, node)

Compute a node's expression into a buffer.
"""
function assign!(l::Lowering, b::Int, shape, i::Int)
    read = unique((l.buffer[j], l.graph.nodes[j].shape) for j in sources(l, i))
    filter!(!=((b, shape)), read)
    groups = groups_of(l, [(b, shape); read])
    to, places = regroup!(l, b, shape, groups)
    names, indices = Dict(b => bufsym(to)), Dict(bufsym(to) => places)
    for (c, s) in read
        alias, places = regroup!(l, c, s, groups)
        names[c] = bufsym(alias)
        indices[bufsym(alias)] = places
    end
    e = expression(l, i, c -> names[c])
    broadcast = :($(bufsym(to)) .= $e)
    isempty(groups) && return emit!(l, broadcast)
    onhost = mapreduce(s -> :($s isa Host), (x, y) -> :($x && $y), sort!(collect(keys(indices))))
    return emit!(l, Expr(:if, onhost, loops!(l, bufsym(to), e, indices, grouped(shape, groups)), broadcast))
end

"The dimensions of a broadcast in groups, for buffers and their shapes, of which the first has all dimensions."
function groups_of(l::Lowering, buffers)
    known(b) = l.contiguous[b] || haskey(l.parts, b)
    all(known ∘ first, buffers) || return [[d] for d in eachindex(last(first(buffers)))]
    return neighbours(last.(buffers); alone = [l.parts[b].d for (b, _) in buffers if haskey(l.parts, b)])
end

"""
Neighbouring dimensions of the first shape that can be taken as one in all of the shapes, as lists. Shapes are those of a
broadcast: dimensions may be 1, or absent at the end. Those that are `alone` are taken with none.
"""
function neighbours(shapes; alone = Int[])
    groups, spans, symbolic = Vector{Int}[], nothing, false  # what is known of the last group
    for (d, n) in enumerate(first(shapes))
        new = n == 1 ? nothing : [d <= length(s) && s[d] != 1 for s in shapes]
        apart = isempty(groups) || d in alone || last(groups[end]) in alone
        if !apart && (new === nothing || spans === nothing || new == spans) && (n isa Int || !symbolic)
            push!(groups[end], d)
            spans = something(new, spans, Some(nothing))
            symbolic |= !(n isa Int)
        else
            push!(groups, [d])
            spans, symbolic = new, !(n isa Int)
        end
    end
    return groups
end

times(a::Int, b::Int) = a * b
times(a::Int, b::Tuple{Int,Int}) = a .* b
times(a::Tuple{Int,Int}, b::Int) = a .* b

"The sizes of groups of dimensions; those that a shape lacks are 1."
grouped(shape, groups) = Dim[reduce(times, (shape[d] for d in group if d <= length(shape)); init = 1) for group in groups]

"""
A buffer with the dimensions of a broadcast in groups, and which groups it spans.
"""
function regroup!(l::Lowering, b::Int, shape, groups)
    sizes = grouped(shape, groups)
    places = Bool[n != 1 for n in sizes]
    if all(g -> length(g) == 1, groups)
        return b, places[1:min(end, length(shape))]
    end
    if haskey(l.parts, b)
        p = l.parts[b]
        whole = grouped(p.shape, groups)
        alias = part!(l, Part(reshaped!(l, p.whole, whole), whole, findfirst(==([p.d]), groups), p.start, p.stop, p.step))
        return alias, places
    end
    while !isempty(sizes) && last(sizes) == 1
        pop!(sizes)
    end
    return reshaped!(l, b, sizes), places[1:length(sizes)]
end

"The loops of an expression; over a large result they are a function of their own, which the threads share."
function loops!(l::Lowering, to::Symbol, e, indices, sizes)
    over = findall(!=(1), sizes)
    worth = l.threads > 1 && !isempty(over) && elements(sizes, l.batch) * (1 + operations(e)) >= WORTH_SHARING
    worth || return loops(to, e, indices, over, length(sizes))
    # The outermost dimension that all threads have enough of, whose parts lie together in memory.
    lengths = [dimsize(sizes[d], l.batch) for d in over]
    d = over[something(findlast(>=(4l.threads), lengths), argmax(lengths))]
    arrays = sort!(collect(keys(indices)))
    body = loops(to, e, indices, over, length(sizes), d)
    loop = compiled(l.T, (arrays..., :t, :batch, :part), body)
    holder = newbuffer!(l, (_...) -> loop; contiguous = false, alias = false)
    return :(in_parts($(bufsym(holder)), $(l.threads), size($to, $d), $(arrays...), t, batch))
end

"How many operations a broadcast expression has."
operations(_) = 0
operations(e::Expr) = 1 + sum(operations, e.args; init = 0)

"""
Loops over dimensions `over` of an expression's result, which has `n`; of `parted` only over a `part`. Those of size 1, as
of a column that is cut out, are none: the inner loop is over the first of the others.
"""
function loops(to::Symbol, e, indices, over, n, parted = nothing)
    inner, outer = isempty(over) ? (1, over) : (first(over), over[2:end])
    counter(d) = d == inner || d in outer ? Symbol(:i, d) : 1
    range(d) = d == parted ? :part : :(axes($to, $d))
    at(s) = Expr(:ref, s, (spans ? counter(d) : 1 for (d, spans) in enumerate(indices[s]))...)
    # What does not change in the inner loop is read before it.
    fixed = [s for s in keys(indices) if s !== to && !get(indices[s], inner, false)]
    held = Dict(s => Symbol(:x, s) for s in fixed)
    reads = Dict(s => get(() -> at(s), held, s) for s in keys(indices))
    whole = Expr(:ref, to, map(counter, 1:n)...)
    body = :(@simd ivdep for $(counter(inner)) in $(range(inner))
        $whole = $(scalar(e, reads))
    end)
    body = Expr(:block, (:($(held[s]) = $(at(s))) for s in fixed)..., body)
    for d in outer
        body = :(for $(counter(d)) in $(range(d))
            $body
        end)
    end
    return :(@inbounds $body)
end

"A broadcast expression for one element; `reads` has the elements of the arrays."
scalar(e::Symbol, reads) = get(reads, e, e)
scalar(e, _) = e
function scalar(e::Expr, reads)
    e.head === :. && return Expr(:call, e.args[1], (scalar(a, reads) for a in e.args[2].args)...)
    e.args[1] === :.^ && return Expr(:call, :^, (scalar(a, reads) for a in e.args[2:end])...)
    return e
end
