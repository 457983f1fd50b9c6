# One method of `lower_op!` for each operation of the graph that is not pointwise.

"The buffer of an operand, computed now if it was to be computed where it is used."
function materialise!(l::Lowering, i::Int; contiguous = false)
    n = l.graph.nodes[i]
    if !haskey(l.buffer, i)
        b = own!(l, n)
        assign!(l, b, n.shape, i)
        delete!(l.virtual, i)
        l.buffer[i] = b
    elseif contiguous && !l.contiguous[l.buffer[i]]
        b = own!(l, n)
        assign!(l, b, n.shape, i)
        l.buffer[i] = b
    end
    return l.buffer[i]
end

emit!(l::Lowering, statement) = push!(l.statements, statement)

"The buffer that a node's result goes to: the given one, or a new one."
destination!(l::Lowering, n::Node, into) = into === nothing ? own!(l, n) : into

"Lower one node; `into` is a buffer that the result should be in, or `nothing`. Sets `l.buffer[i]`."
function lower!(l::Lowering, i::Int, into)
    n = l.graph.nodes[i]
    haskey(l.bias, i) && return  # made with its sum
    if haskey(l.sums, i)
        product = l.sums[i]
        lower_op!(l, Val(:mm), product, l.graph.nodes[product], into)
        l.buffer[i] = l.buffer[product]
        return
    end
    ispointwise(n) ? lower_pointwise!(l, i, n, into) : lower_op!(l, Val(n.op), i, n, into)
    return
end

function lower_op!(::Lowering, ::Val{op}, i, n, into) where {op}
    throw(ArgumentError("the graph has the operation `$op`, which this PyNODE cannot lower: update PyNODE"))
end

function lower_pointwise!(l, i, n, into)
    push!(l.virtual, i)
    b = destination!(l, n, into)
    assign!(l, b, n.shape, i)
    delete!(l.virtual, i)
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:const}, i, n, into)
    n.dtype === :int && return  # indices are attributes of the operations that use them
    shape, E = n.shape, eltype_of(n, l.T)
    data = E[number(x) for x in n.attrs["data"]]
    l.buffer[i] = newbuffer!(l, (like, batch, _) -> copyto!(similar(like, E, sizes(shape, batch)), data); alias = false)
end

"The numbers 0, 1, … in order."
function lower_op!(l::Lowering, ::Val{:arange}, i, n, into)
    shape, T = n.shape, l.T
    function make(like, batch, _)
        x = similar(like, T, sizes(shape, batch))
        return copyto!(x, T.(0:(length(x) - 1)))
    end
    l.buffer[i] = newbuffer!(l, make; alias = false)
end

# ---- views and copies -----------------------------------------------------------------------------------------

function lower_op!(l::Lowering, ::Val{:reshape}, i, n, into)
    l.buffer[i] = reshaped!(l, materialise!(l, n.inputs[1]; contiguous = true), n.shape)
end

function lower_op!(l::Lowering, ::Val{:permute}, i, n, into)
    # Products take a transposed factor as it is, see `factor!`.
    isswap(n) && !(i in l.outputs) && all(j -> l.graph.nodes[j].op in (:mm, :bmm), l.users[i]) && return
    perm = permutation(n)
    source = bufsym(materialise!(l, n.inputs[1]; contiguous = true))
    b = destination!(l, n, into)
    to = bufsym(b)
    if turned_parameter(l, i) !== nothing
        emit!(l, :(is_turned($source, batch) && turn!($to, $source)))
    else
        emit!(l, perm == (2, 1) ? :(turn!($to, $source)) : :(permutedims!($to, $source, $perm)))
    end
    l.buffer[i] = b
end

"The order of Julia's dimensions."
permutation(n::Node) = (r = length(n.shape); Tuple(r - Int(d) for d in Iterators.reverse(n.attrs["dims"])))

bounds(n::Node) = (todim(n.attrs["start"]), todim(n.attrs["stop"]), Int(n.attrs["step"]))

function lower_op!(l::Lowering, ::Val{:slice}, i, n, into)
    whole = materialise!(l, n.inputs[1])
    l.buffer[i] = part!(l, Part(whole, l.graph.nodes[n.inputs[1]].shape, juliadim(n, n.attrs["dim"]), bounds(n)...))
end

function lower_op!(l::Lowering, ::Val{:embed}, i, n, into)
    b = own!(l, n)  # zero where nothing is written
    p = part!(l, Part(b, n.shape, juliadim(n, n.attrs["dim"]), bounds(n)...))
    assign!(l, p, l.graph.nodes[n.inputs[1]].shape, n.inputs[1])
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:cat}, i, n, into)
    d = juliadim(n, n.attrs["dim"])
    b, from = destination!(l, n, into), 0
    for j in n.inputs
        size = l.graph.nodes[j].shape[d]
        upto = size isa Int && from isa Int ? from + size : (sizeparts(size) .+ sizeparts(from))
        p = part!(l, Part(b, n.shape, d, from, upto, 1))
        assign!(l, p, l.graph.nodes[j].shape, j)
        from = upto
    end
    l.buffer[i] = b
end

sizeparts(d::Int) = (0, d)
sizeparts(d::Tuple{Int,Int}) = d

function lower_op!(l::Lowering, ::Val{:flip}, i, n, into)
    over = [juliadim(n, d) for d in n.attrs["dims"]]
    source = materialise!(l, n.inputs[1])
    function make(_, _, buffers)
        x = buffers[source]
        return view(x, ntuple(d -> d in over ? reverse(axes(x, d)) : Colon(), ndims(x))...)
    end
    l.buffer[i] = newbuffer!(l, make; contiguous = false)
end

# ---- reductions -----------------------------------------------------------------------------------------------

const REDUCTIONS = Dict(:sum => :sum!, :amax => :maximum!, :amin => :minimum!, :prod => :prod!)

function lower_op!(l::Lowering, ::Union{Val{:sum},Val{:amax},Val{:amin},Val{:prod}}, i, n, into)
    whole = l.graph.nodes[n.inputs[1]]
    over = [juliadim(whole, d) for d in (n.op === :prod ? [n.attrs["dim"]] : n.attrs["dims"])]
    kept = Dim[d in over ? 1 : whole.shape[d] for d in eachindex(whole.shape)]
    source = materialise!(l, n.inputs[1])
    b = destination!(l, n, into)
    groups = l.contiguous[source] ? neighbours([whole.shape, kept]) : [[d] for d in eachindex(kept)]
    to = reshaped!(l, b, grouped(kept, groups))
    from = l.contiguous[source] ? reshaped!(l, source, grouped(whole.shape, groups)) : source
    arguments = (bufsym(to), bufsym(from))
    worth = l.threads > 1 && elements(whole.shape, l.batch) >= WORTH_SHARING
    emit!(l, Expr(:call, (worth ? (:reduce_shared!, l.threads) : ())..., REDUCTIONS[n.op], arguments...))
    l.buffer[i] = b
end

"`reduce!(to, from)`, by threads that share the last dimension, where that is not reduced and they have enough of it."
function reduce_shared!(threads::Int, reduce!::F, to::Host, from::Host) where {F}
    n = size(to, ndims(to))
    n >= threads || return reduce!(to, from)
    on_threads(reduce_part!, threads, reduce!, to, from, parted(1:n, threads))
    return to
end

reduce_shared!(_, reduce!::F, to, from) where {F} = reduce!(to, from)

reduce_part!(i, reduce!::F, to, from, parts) where {F} = reduce!(of_last(to, parts[i]), of_last(from, parts[i]))

"Part of the last dimension; of an array as an array, whose sums Julia takes in the same order."
of_last(x, range) = view(x, ntuple(_ -> Colon(), Val(ndims(x) - 1))..., range)
of_last(x::Array, range) = part_of(x, (first(range) - 1) * stride(x, ndims(x)), (Base.front(size(x))..., length(range)))

const RUNNING = Dict(:cumsum => :+, :cumprod => :*, :cummax => :max, :cummin => :min, :logcumsumexp => :logaddexp)

function lower_op!(l::Lowering, ::Union{(Val{op} for op in keys(RUNNING))...}, i, n, into)
    source = bufsym(materialise!(l, n.inputs[1]))
    b = destination!(l, n, into)
    emit!(l, :(running!($(RUNNING[n.op]), $(bufsym(b)), $source, Val($(juliadim(n, n.attrs["dim"]))))))
    l.buffer[i] = b
end

"Running sums, products or extrema along a dimension, slice by slice."
function running!(f::F, y, x, ::Val{d}) where {F,d}
    before, after = ntuple(_ -> Colon(), Val(d - 1)), ntuple(_ -> Colon(), Val(ndims(x) - d))
    view(y, before..., 1:1, after...) .= view(x, before..., 1:1, after...)
    for k in 2:size(x, d)
        last = (k - 1):(k - 1)
        view(y, before..., k:k, after...) .= f.(view(y, before..., last, after...), view(x, before..., k:k, after...))
    end
    return y
end

# ---- indexing by constants ------------------------------------------------------------------------------------

positions(n::Node) = Int[k + 1 for k in n.attrs["index"]]

"A buffer of the positions that an index which is known points to along a dimension of a buffer, as `arranged` has them."
function positions!(l::Lowering, n::Node, b::Int, d::Int, arranged)
    function make(like, _, buffers)
        at = positions(n)
        checkindex(Bool, axes(buffers[b], d), at) || throw(BoundsError(buffers[b], at))
        return arranged(like, at)
    end
    return bufsym(newbuffer!(l, make; contiguous = false, alias = false))
end

function lower_op!(l::Lowering, ::Val{:index_select}, i, n, into)
    source, d = materialise!(l, n.inputs[1]), juliadim(n, n.attrs["dim"])
    b = destination!(l, n, into)
    emit!(l, :(pick_along!($(bufsym(b)), $(bufsym(source)), $(positions!(l, n, source, d, placed)), $(Val(d)))))
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:index_add}, i, n, into)
    source, d = materialise!(l, n.inputs[1]), juliadim(n, n.attrs["dim"])
    b = destination!(l, n, into)
    emit!(l, :(add_along!($(bufsym(b)), $(bufsym(source)), $(positions!(l, n, b, d, in_rounds)), $(Val(d)))))
    l.buffer[i] = b
end

"Numbers where an array like this one lies."
placed(::Host, numbers::Vector{Int}) = numbers
placed(like, numbers::Vector{Int}) = copyto!(similar(like, Int, length(numbers)), numbers)

"The same for sums: on a device positions with their places, in rounds that hold each position at most once."
in_rounds(::Host, at::Vector{Int}) = at
in_rounds(like, at::Vector{Int}) = [(placed(like, at[places]), placed(like, places)) for places in rounds(at)]

leading(x, ::Val{d}) where {d} = CartesianIndices(ntuple(k -> axes(x, k), Val(d - 1)))
trailing(x, ::Val{d}) where {d} = CartesianIndices(ntuple(k -> axes(x, d + k), Val(ndims(x) - d)))

function pick_along!(y, x, at::Vector{Int}, d::Val)
    @inbounds for c in trailing(x, d), (j, k) in pairs(at)
        @simd for a in leading(x, d)
            y[a, j, c] = x[a, k, c]
        end
    end
    return y
end

function add_along!(y, x, at::Vector{Int}, d::Val)
    fill!(y, zero(eltype(y)))
    @inbounds for c in trailing(x, d), (j, k) in pairs(at)
        @simd for a in leading(x, d)
            y[a, k, c] += x[a, j, c]
        end
    end
    return y
end

entries(x, at, ::Val{d}) where {d} = view(x, ntuple(k -> k == d ? at : Colon(), Val(ndims(x)))...)

"The same of what is read, which may be part of an array; parts of parts at computed places are not for devices."
entries_of(x, at, d::Val) = entries(x isa SubArray ? copy(x) : x, at, d)

pick_along!(y, x, at, d::Val) = y .= entries_of(x, at, d)

function add_along!(y, x, rounds, d::Val)
    fill!(y, zero(eltype(y)))
    for (at, places) in rounds
        entries(y, at, d) .+= entries_of(x, places, d)
    end
    return y
end

"The places of an index in rounds, each of which holds every position at most once."
function rounds(index::Vector{Int})
    found, met = Vector{Int}[], Dict{Int,Int}()
    for (place, position) in enumerate(index)
        r = met[position] = get(met, position, 0) + 1
        r > length(found) && push!(found, Int[])
        push!(found[r], place)
    end
    return found
end
