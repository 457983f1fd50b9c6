# The buffers of a kernel for one batch size, and its programs bound to them.

"A program with its buffers. Mutable, since a function pointer's call copies what is not: all buffers, at each evaluation."
mutable struct Bound{F,B<:Tuple}
    const run::F
    const buffers::B
    const batch::Int
    const alone::Bool  # whether its matrix products have one thread each
end

(p::Bound)(t) = p.alone ? products_alone(p.run, p.buffers, t, p.batch) : p.run(p.buffers, t, p.batch)

"""
The buffers of a kernel for some samples of a batch. `u`, `θ`, `v` are read, `du`, `dz`, `dθ`, `dt` written by the programs
that `bind` makes: vectors of the whole batch, PyTorch's tensors one after the other.

Where the batch is parted, each block of samples has a workspace, over the same vectors; the blocks of each thread are run
one after the other, beside those of the others. The cotangents of inputs that all samples share, and that of the time, are
a block's own, and are added up.
"""
struct Workspace{T,V<:AbstractVector{T}}
    kernel::Kernel{T}
    batch::Int
    samples::UnitRange{Int}
    like::V
    u::V
    θ::V
    v::V
    du::V
    dz::V
    dθ::V      # conditioning tensors, then parameters
    shared::V  # of a block: the part of `dθ` of inputs that all samples share; of a whole batch `dθ` itself
    dt::V
    frontier::Vector{Any}
    scratch::Dict{Program,Vector{Any}}  # the buffers of a program's own, which every binding of it shares
    straight::Dict{Program,Any}         # what programs are run in their place, see `straight.jl`
    alone::Bool  # see `Bound`
    blocks::Vector{Vector{Workspace{T,V}}}  # by thread
end

elements(shape, batch) = prod(d -> dimsize(d, batch), shape; init = 1)

shapes(g::Graph, ids) = [g.inputs[i].shape for i in ids]
differentiated(g::Graph) = [inputs_of(g, :arg); inputs_of(g, :parameter)]

"An array for a node's value."
room(like, n::Node, T, batch) = (E = eltype_of(n, T); fill!(similar(like, E, sizes(n.shape, batch)), zero(E)))

"""
    Workspace(kernel, batch, like = T[]; threads = 1, rows = batch, alone = false)

Allocate the buffers of a kernel for a batch size, with arrays like `like`; the batch is parted between so many threads, and
the samples of each into blocks of about equal size, of `rows` samples at most. Matrix products of one that is `alone`
have one thread.
"""
function Workspace(
    k::Kernel{T}, batch::Int, like::V = T[]; threads::Int = 1, rows::Int = batch, alone::Bool = false
) where {T,V}
    g = k.graph
    zeros_of(n) = fill!(similar(like, T, n), zero(T))
    make(ids) = zeros_of(sum(x -> elements(x, batch), shapes(g, ids); init = 0))
    z = inputs_of(g, :z)
    u, θ, v, du, dz, dθ = make(z), make(theta_inputs(g)), make(inputs_of(g, :cotangent)), make(z), make(z), make(differentiated(g))
    workspace(samples, shared, frontier, scratch, blocks) =
        Workspace{T,V}(k, batch, samples, like, u, θ, v, du, dz, dθ, shared, zeros_of(1), frontier, scratch, Dict(), alone, blocks)
    once = [g.nodes[i] for i in frontier(g)]
    front(n) = Any[room(like, node, T, n) for node in once]
    whole = threads == 1 && rows >= batch
    whole && return workspace(1:batch, dθ, front(batch), Dict{Program,Vector{Any}}(), Vector{Workspace{T,V}}[])
    size = sum(last, shared_places(g, batch); init = 0)
    common = front_is_shared(g) ? front(1) : nothing
    function blocks_of(samples)
        shared, scratch = zeros_of(size), Dict{Int,Dict{Program,Vector{Any}}}()
        return map(parted(samples, cld(length(samples), rows))) do part
            own = get!(() -> Dict{Program,Vector{Any}}(), scratch, length(part))
            workspace(part, shared, common === nothing ? front(length(part)) : common, own, Vector{Workspace{T,V}}[])
        end
    end
    return workspace(1:batch, dθ, Any[], Dict{Program,Vector{Any}}(), map(blocks_of, parted(1:batch, threads)))
end

"Whether nothing that is computed once for all evaluations has samples: then blocks have it in common."
front_is_shared(g::Graph) = all(i -> all(d -> d isa Int, g.nodes[i].shape), frontier(g))

"Of inputs that all samples share: behind how many numbers of `dθ` the cotangent lies, and of a block's `shared`; its length."
function shared_places(g::Graph, batch::Int)
    found, offset, own = NTuple{3,Int}[], 0, 0
    for shape in shapes(g, differentiated(g))
        n = elements(shape, batch)
        if !has_samples(shape)
            push!(found, (offset, own, n))
            own += n
        end
        offset += n
    end
    return found
end

"Part of a vector as an array of a shape, over the same memory."
part_of(x::Array, offset, shape) = unsafe_wrap(Array, pointer(x, offset + 1), shape)
part_of(x::AbstractVector, offset, shape) = reshape(view(x, (offset + 1):(offset + prod(shape))), shape)

"The workspace's part of arrays that lie in a vector, whose shapes are these."
function parts!(buffers, x, shapes, w::Workspace)
    offset = 0
    for shape in shapes
        push!(buffers, part_of(x, offset + before(w, shape), sizes(shape, length(w.samples))))
        offset += elements(shape, w.batch)
    end
    return buffers
end

"How many numbers of an array belong to samples before those of the workspace."
before(w::Workspace, shape) = has_samples(shape) ? (first(w.samples) - 1) * elements(shape, 1) : 0

isblock(w::Workspace) = w.shared !== w.dθ

"The same for the cotangents of all inputs but the state and the time."
function cotangents!(buffers, w::Workspace)
    all = shapes(w.kernel.graph, differentiated(w.kernel.graph))
    isblock(w) || return parts!(buffers, w.dθ, all, w)
    offset = own = 0
    for shape in all
        n, size = elements(shape, w.batch), sizes(shape, length(w.samples))
        if has_samples(shape)
            push!(buffers, part_of(w.dθ, offset + before(w, shape), size))
        else
            push!(buffers, part_of(w.shared, own, size))
            own += n
        end
        offset += n
    end
    return buffers
end

"""
    bind(workspace, program; u, du, residuals)

A program on a workspace's buffers, or on others for the state, the value and the residuals; it does not keep the memory of
`u` and `du` alive.
"""
function bind(w::Workspace, p::Program; u = w.u, du = w.du, residuals = no_residuals(w))
    isempty(w.blocks) || return bind_blocks(w, p, u, du, residuals)
    g = w.kernel.graph
    z = shapes(g, inputs_of(g, :z))
    buffers = Any[]
    parts!(buffers, u, z, w)
    parts!(buffers, w.θ, shapes(g, theta_inputs(g)), w)
    parts!(buffers, w.v, shapes(g, inputs_of(g, :cotangent)), w)
    append!(buffers, w.frontier, residuals)
    parts!(buffers, du, z, w)
    parts!(buffers, w.dz, z, w)
    cotangents!(buffers, w)
    push!(buffers, part_of(w.dt, 0, ()))
    run = straight_run(w, p)
    run === nothing || return Bound(run, Tuple(buffers), length(w.samples), false)
    fresh = !haskey(w.scratch, p)
    scratch = get!(() -> Any[], w.scratch, p)
    batch = length(w.samples)
    for (i, s) in enumerate(p.specs)
        fresh && push!(scratch, s.alias ? nothing : s.make(w.like, batch, buffers))
        push!(buffers, s.alias ? s.make(w.like, batch, buffers) : scratch[i])
    end
    return Bound(p.run, Tuple(buffers), batch, w.alone)
end

straight_run(::Workspace, ::Program) = nothing

straight_run(w::Workspace{T,Vector{T}}, p::Program) where {T} =
    get!(() -> straight(p.computation, length(w.samples)), w.straight, p)

"Buffers for residuals, of a memory if one is given; of a workspace in blocks, a list of them for each."
function new_residuals(w::Workspace{T}, memory::Union{Nothing,Memory} = nothing) where {T}
    isempty(w.blocks) || return [map(b -> new_residuals(b, memory), blocks) for blocks in w.blocks]
    batch = length(w.samples)
    return Any[new_residual(w, w.kernel.graph.nodes[i], batch, memory) for i in w.kernel.residuals]
end

new_residual(w::Workspace{T}, n::Node, batch, ::Nothing) where {T} = room(w.like, n, T, batch)
new_residual(::Workspace{T}, n::Node, batch, m::Memory) where {T} = next_array!(m, eltype_of(n, T), sizes(n.shape, batch))

"The bytes of a workspace's residuals in all blocks, of which each array takes a multiple of `align`."
function residual_bytes(w::Workspace{T}, align::Int) where {T}
    isempty(w.blocks) || return sum(b -> residual_bytes(b, align), Iterators.flatten(w.blocks))
    nodes = (w.kernel.graph.nodes[i] for i in w.kernel.residuals)
    return sum(n -> room_of(align, eltype_of(n, T), elements(n.shape, length(w.samples))), nodes; init = 0)
end

"In the place of residuals for programs that have none."
function no_residuals(w::Workspace)
    isempty(w.blocks) || return [map(no_residuals, blocks) for blocks in w.blocks]
    return Any[nothing for _ in w.kernel.residuals]
end

"The entries of the state that belong to each sample."
function samples(w::Workspace)
    found, offset = [Int[] for _ in 1:(w.batch)], 0
    for shape in shapes(w.kernel.graph, inputs_of(w.kernel.graph, :z))
        n = elements(shape, w.batch)
        size = n ÷ w.batch
        foreach(b -> append!(found[b], (offset + (b - 1) * size) .+ (1:size)), 1:(w.batch))
        offset += n
    end
    return found
end

# ---- blocks ---------------------------------------------------------------------------------------------------

"The programs of a workspace's blocks, run on Julia's threads; what products have in common is added up."
struct InBlocks{T,V,W<:Workspace{T,V}}
    programs::Vector{Vector{FunctionWrapper{Nothing,Tuple{T}}}}  # by thread
    workspace::W
    places::Vector{NTuple{3,Int}}  # see `shared_places`
    sums::Vector{V}  # by thread, of the cotangents that blocks have in common, that of the time last; none: no products
end

function bind_blocks(w::Workspace{T,V}, p::Program, u, du, residuals) where {T,V}
    if p === w.kernel.prologue && front_is_shared(w.kernel.graph)
        once = bind(w.blocks[1][1], p; u, du, residuals = residuals[1][1])
        return Bound(once.run, once.buffers, w.batch, w.alone)  # of the batch, which decides what is made
    end
    programs = map(w.blocks, residuals) do blocks, of_blocks
        map((b, r) -> FunctionWrapper{Nothing,Tuple{T}}(bind(b, p; u, du, residuals = r)), blocks, of_blocks)
    end
    k = w.kernel
    products = any(q -> q === p, (k.vjp, k.replay, k.vjp_state, k.vjp_theta))
    make() = Any[zeros(T, length(blocks[1].shared) + 1) for blocks in w.blocks]
    sums = products ? V[x for x in get!(make, w.scratch, p)] : V[]
    return InBlocks(programs, w, shared_places(k.graph, w.batch), sums)
end

function (p::InBlocks)(t)
    products_alone(on_threads, run_blocks!, length(p.programs), p, t)  # each block's are one thread's
    isempty(p.sums) || put_sums!(p)
    return nothing
end

"Run the blocks of a thread."
function run_blocks!(thread::Int, p::InBlocks{T}, t) where {T}
    programs, blocks = p.programs[thread], p.workspace.blocks[thread]
    isempty(p.sums) || fill!(p.sums[thread], zero(T))
    for (program, block) in zip(programs, blocks)
        program(t)
        isempty(p.sums) && continue
        sum, shared = p.sums[thread], block.shared
        @inbounds @simd for i in eachindex(shared)
            sum[i] += shared[i]
        end
        sum[end] += block.dt[1]
    end
    return
end

"Add up the sums of the threads, in their order, and put them where they belong."
function put_sums!(p::InBlocks)
    w, total = p.workspace, p.sums[1]
    foreach(i -> total .+= p.sums[i], 2:length(p.sums))
    foreach(((offset, own, n),) -> copyto!(w.dθ, offset + 1, total, own + 1, n), p.places)
    w.dt[1] = total[end]
    return
end

"Numbers that the widest array of a block has at most, where blocks are not too short for that: all its arrays stay in a cache."
const CACHED = 2^13

"Samples that a block has, where the batch has them, so that what surrounds its operations is little beside them."
const LEAST_ROWS = 128

"Blocks that a batch has at most, since each takes ten microseconds to be made ready where its evaluations are kept."
const MOST_BLOCKS = 1024

"Samples that a block of a kernel has at most, in batches that are not too large for that."
rows_of_blocks(g::Graph) = max(LEAST_ROWS, CACHED ÷ max(1, maximum(n -> elements(n.shape, 1), of_samples(g); init = 1)))

"""
    part_batch(kernel, batch, threads)

Between how many of so many threads a batch is best parted, how many samples a block has then at most, and whether it is
too small for products to have threads.
"""
function part_batch(k::Kernel, batch::Int, threads::Int)
    g = k.graph
    alone = threads > 1 && THREADED_PRODUCT < work(g, batch) < 2WORTH_A_THREAD
    whole = (; threads = 1, rows = batch, alone)
    rows = max(rows_of_blocks(g), cld(batch, MOST_BLOCKS))
    batch > 1 && (threads > 1 || rows < batch) && samples_apart(g) || return whole
    threads = clamp(work(g, batch) ÷ WORTH_A_THREAD, 1, min(threads, batch))
    return (; threads, rows, alone)
end

"""
    threads_within(kernel, batch, threads)

Between how many of so many threads each operation is best shared: one where the batch is parted instead.
"""
function threads_within(k::Kernel, batch::Int, threads::Int)
    threads > 1 && work(k.graph, batch) >= 2WORTH_A_THREAD || return 1
    return batch >= threads && samples_apart(k.graph) ? 1 : threads
end
