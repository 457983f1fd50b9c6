# The buffers of a kernel for one batch size, and its programs bound to them.

"A program with its buffers."
struct Bound{F,B<:Tuple}
    run::F
    buffers::B
    batch::Int
end

(p::Bound)(t) = p.run(p.buffers, t, p.batch)

"""
The buffers of a kernel for some samples of a batch. `u`, `θ`, `v` are read, `du`, `dz`, `dθ`, `dt` written by the programs
that `bind` makes: vectors of the whole batch, PyTorch's tensors one after the other.

Where the batch is parted into blocks, each has a workspace, over the same vectors, and these are run side by side. The
cotangents of inputs that all samples share, and that of the time, are a block's own, and are added up.
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
    blocks::Vector{Workspace{T,V}}
end

elements(shape, batch) = prod(d -> dimsize(d, batch), shape; init = 1)

shapes(g::Graph, ids) = [g.inputs[i].shape for i in ids]
differentiated(g::Graph) = [inputs_of(g, :arg); inputs_of(g, :parameter)]

"An array for a node's value."
room(like, n::Node, T, batch) = (E = eltype_of(n, T); fill!(similar(like, E, sizes(n.shape, batch)), zero(E)))

"""
    Workspace(kernel, batch, like = T[]; blocks = 1)

Allocate the buffers of a kernel for a batch size, with arrays like `like`; parted into so many blocks, of about equal
size, if there are several.
"""
function Workspace(k::Kernel{T}, batch::Int, like::V = T[]; blocks::Int = 1) where {T,V}
    g = k.graph
    make(ids) = fill!(similar(like, T, sum(x -> elements(x, batch), shapes(g, ids); init = 0)), zero(T))
    z = inputs_of(g, :z)
    u, θ, v, du, dz, dθ = make(z), make(theta_inputs(g)), make(inputs_of(g, :cotangent)), make(z), make(z), make(differentiated(g))
    workspace(samples, shared, frontier, blocks) = Workspace{T,V}(
        k, batch, samples, like, u, θ, v, du, dz, dθ, shared, fill!(similar(like, T, 1), zero(T)),
        frontier, Dict{Program,Vector{Any}}(), blocks,
    )
    front(n) = Any[room(like, g.nodes[i], T, n) for i in frontier(g)]
    blocks == 1 && return workspace(1:batch, dθ, front(batch), Workspace{T,V}[])
    size = sum(x -> elements(x, batch), filter(!has_samples, shapes(g, differentiated(g))); init = 0)
    parts = [((i - 1) * batch ÷ blocks + 1):(i * batch ÷ blocks) for i in 1:blocks]
    block(samples) = workspace(samples, fill!(similar(like, T, size), zero(T)), front(length(samples)), Workspace{T,V}[])
    return workspace(1:batch, dθ, Any[], map(block, parts))
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
before(w::Workspace, shape) = first(w.samples) == 1 ? 0 : has_samples(shape) ? (first(w.samples) - 1) * elements(shape, 1) : 0

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
    fresh = !haskey(w.scratch, p)
    scratch = get!(() -> Any[], w.scratch, p)
    batch = length(w.samples)
    for (i, s) in enumerate(p.specs)
        fresh && push!(scratch, s.alias ? nothing : s.make(w.like, batch, buffers))
        push!(buffers, s.alias ? s.make(w.like, batch, buffers) : scratch[i])
    end
    return Bound(p.run, Tuple(buffers), batch)
end

"Buffers for residuals; of a workspace in blocks, a list of them for each."
function new_residuals(w::Workspace{T}) where {T}
    isempty(w.blocks) || return Any[new_residuals(b) for b in w.blocks]
    return Any[room(w.like, w.kernel.graph.nodes[i], T, length(w.samples)) for i in w.kernel.residuals]
end

"In the place of residuals for programs that have none."
function no_residuals(w::Workspace)
    isempty(w.blocks) || return Any[no_residuals(b) for b in w.blocks]
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

"The program of each block of a workspace, run on Julia's threads; where it makes products, those of all are added up."
struct InBlocks{T,W<:Workspace{T}}
    programs::Vector{FunctionWrapper{Nothing,Tuple{T}}}
    workspace::W
    sums::Bool
end

function bind_blocks(w::Workspace{T}, p::Program, u, du, residuals) where {T}
    programs = map((b, r) -> bind(b, p; u, du, residuals = r), w.blocks, residuals)
    k = w.kernel
    sums = any(q -> q === p, (k.vjp, k.replay, k.vjp_state, k.vjp_theta))
    return InBlocks(FunctionWrapper{Nothing,Tuple{T}}[programs...], w, sums)
end

function (p::InBlocks)(t)
    threads = BLAS.get_num_threads()
    threads == 1 || BLAS.set_num_threads(1)  # each block's products are one thread's
    tasks = [Threads.@spawn(p.programs[i](t)) for i in 2:length(p.programs)]
    try
        p.programs[1](t)
    finally
        foreach(wait, tasks)  # they write to the caller's memory
        threads == 1 || BLAS.set_num_threads(threads)
    end
    p.sums && add_blocks!(p.workspace)
    return nothing
end

"Add up what the blocks contribute to the cotangents of the time and of inputs that all samples share, in their order."
function add_blocks!(w::Workspace)
    g, offset, own = w.kernel.graph, 0, 0
    for shape in shapes(g, differentiated(g))
        n = elements(shape, w.batch)
        if !has_samples(shape)
            add_parts!(w.dθ, offset, w.blocks, own, n)
            own += n
        end
        offset += n
    end
    w.dt[1] = sum(b -> b.dt[1], w.blocks)
    return
end

function add_parts!(total, offset, blocks, own, n)
    copyto!(total, offset + 1, blocks[1].shared, own + 1, n)
    for i in 2:length(blocks)
        part = blocks[i].shared
        @inbounds @simd for k in 1:n
            total[offset + k] += part[own + k]
        end
    end
    return
end

"Operations on numbers that a block takes at least: beside them, having another thread at work costs little."
const WORTH_A_THREAD = 500_000

"Into how many blocks a batch is best parted for so many threads."
function block_count(k::Kernel, batch::Int, threads::Int)
    threads > 1 && batch > 1 && samples_apart(k.graph) || return 1
    return clamp(batch * work(k.graph) ÷ WORTH_A_THREAD, 1, min(threads, batch))
end
