# What a solve records of the field's evaluations, for the discrete adjoint.

"""
One evaluation of a field: `k = f(t, u)`. A heavy stage holds the residuals too, from which `product` goes on where the
other stages compute the value again.
"""
mutable struct Stage{T,V<:AbstractVector{T}}
    t::Time
    const u::V
    const k::V
    const heavy::Bool
    const record::FunctionWrapper{Nothing,Tuple{T}}
    const product::FunctionWrapper{Nothing,Tuple{T}}
    const bytes::Int
    const graph::Int            # Python's number of the residuals, where Python has them
    const block::Vector{UInt8}  # the memory of all its arrays, of a small one; see `Record`
end

"""
The evaluations of a field while `on`, in `taken`. Stages are made as they are needed and come back to be used again; the
heavy ones may take `left` bytes. Small ones are heavy wherever there are residuals.
"""
mutable struct Tape{T,V<:AbstractVector{T}}
    on::Bool
    left::Int
    refused::Bool                    # whether memory that came back was let go, since too much waits to be used again
    const taken::Vector{Stage{T,V}}
    const light::Vector{Stage{T,V}}  # to be used again
    const heavy::Vector{Stage{T,V}}
    const chunks::Vector{Vector{UInt8}}
    const window::Vector{Stage{T,V}}  # where small stages are read
    const workspace::Union{Workspace{T,V},Callback{T}}
    const bytes::Int                 # of a heavy stage; 0 where there are no residuals
    const size::Int                  # of a small stage's block; 0 where stages are large
end

Tape{T,V}(workspace, bytes::Int, size::Int) where {T,V} =
    Tape{T,V}(
        false, 0, false, (Stage{T,V}[] for _ in 1:3)..., Vector{UInt8}[], Stage{T,V}[], workspace, bytes, size,
    )

"Bytes of arrays up to which a stage is small."
const SMALL = 2^12

function Tape(w::Workspace{T,V}) where {T,V}
    residuals = (w.kernel.graph.nodes[i] for i in w.kernel.residuals)
    bytes = sum(n -> elements(n.shape, w.batch) * sizeof(eltype_of(n, T)), residuals; init = 0)
    bytes == 0 || (bytes += 2sizeof(w.u))
    size = isempty(w.blocks) && V === Vector{T} ? block_size(w) : 0
    return size == 0 || size > SMALL ? Tape{T,V}(w, bytes, 0) : Tape{T,V}(w, bytes == 0 ? 0 : size, size)
end

Tape(c::Callback{T}) where {T} = Tape{T,Vector{T}}(c, c.bytes, 0)

function take!(tape::Tape)
    stage = next_stage!(tape, tape.bytes > 0 && (tape.size > 0 || tape.bytes <= tape.left))
    tape.left -= stage.bytes
    push!(tape.taken, stage)
    return stage
end

function next_stage!(tape::Tape, heavy::Bool)
    spare = heavy ? tape.heavy : tape.light
    isempty(spare) && return make_stage(tape, tape.workspace, heavy)
    stage = pop!(spare)
    counts(tape) && Threads.atomic_sub!(SPARE, stage.bytes)
    return stage
end

function make_stage(tape::Tape{T,V}, w::Workspace, heavy::Bool) where {T,V}
    tape.size > 0 && return make_small_stage(tape, w)
    u, k = similar(w.u), similar(w.u)
    residuals = heavy ? new_residuals(w) : no_residuals(w)
    return bound_stage(tape, w, heavy, u, k, residuals, heavy ? tape.bytes : 2sizeof(u), UInt8[])
end

function bound_stage(tape::Tape{T,V}, w::Workspace, heavy::Bool, u, k, residuals, bytes::Int, block) where {T,V}
    record = heavy ? bind(w, w.kernel.record; u, du = k, residuals) : identity_of
    product = heavy ? bind(w, w.kernel.replay; u, residuals) : identity_of
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, bytes, 0, block)
end

function make_stage(tape::Tape{T,V}, c::Callback, heavy::Bool) where {T,V}
    u, k = similar(c.u), similar(c.u)
    n = heavy ? (c.graphs[] += 1) : 0
    record = heavy ? GraphProgram(c, record_function, n, u, k) : identity_of
    product = heavy ? GraphProgram(c, replay_function, n, u, k) : identity_of
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, heavy ? tape.bytes : 2sizeof(u), n, UInt8[])
end

identity_of(_) = nothing

"Bytes that an array takes in a block: where the next one begins, vector instructions find it aligned."
room_in_block(E, n) = cld(n * sizeof(E), 16) * 16

"The bytes of a stage's block: its time, its state and value, and the residuals."
function block_size(w::Workspace{T}) where {T}
    residuals = (w.kernel.graph.nodes[i] for i in w.kernel.residuals)
    of_residuals = sum(n -> room_in_block(eltype_of(n, T), elements(n.shape, w.batch)), residuals; init = 0)
    return room_in_block(Time, 1) + 2room_in_block(T, length(w.u)) + of_residuals
end

"A stage whose arrays lie one after the other in its block."
function make_small_stage(tape::Tape{T,V}, w::Workspace) where {T,V}
    block, offset = zeros(UInt8, tape.size), room_in_block(Time, 1)
    function next_array(E, shape)
        x = unsafe_wrap(Array, Ptr{E}(pointer(block, offset + 1)), shape)
        offset += room_in_block(E, length(x))
        return x
    end
    u, k = next_array(T, (length(w.u),)), next_array(T, (length(w.u),))
    nodes = (w.kernel.graph.nodes[i] for i in w.kernel.residuals)
    residuals = Any[next_array(eltype_of(n, T), sizes(n.shape, w.batch)) for n in nodes]
    return bound_stage(tape, w, tape.bytes > 0, u, k, residuals, tape.size, block)
end

"Whether a tape's stages are counted in `SPARE`: of small ones there are as many as an evaluated step has."
counts(tape::Tape) = tape.size == 0

"Give a stage back."
function recycle!(tape::Tape, stage::Stage)
    tape.left += stage.bytes
    stage.graph == 0 || drop!(tape.workspace, stage.graph)
    counts(tape) && !claim!(tape, stage.bytes) && return
    push!(stage.heavy ? tape.heavy : tape.light, stage)
    return
end

"Give all stages back that were taken."
function recycle_taken!(tape::Tape)
    foreach(s -> recycle!(tape, s), tape.taken)
    empty!(tape.taken)
    return
end

"Bytes of the memory, of all fields, that waits to be used again, and how many may."
const SPARE = Threads.Atomic{Int}(0)
const MAX_SPARE = 2^29

"Whether so many more bytes may wait to be used again; if so, they are counted."
function claim!(tape::Tape, bytes::Int)
    if SPARE[] + bytes > MAX_SPARE
        tape.refused = true
        return false
    end
    Threads.atomic_add!(SPARE, bytes)
    return true
end

"Bytes that wait to be used again."
spare(tape::Tape) =
    (counts(tape) ? sum(s -> s.bytes, Iterators.flatten((tape.light, tape.heavy)); init = 0) : 0) + sum(length, tape.chunks; init = 0)

"Let go of what waits to be used again."
function discard!(tape::Tape)
    Threads.atomic_sub!(SPARE, spare(tape))
    foreach(empty!, (tape.light, tape.heavy, tape.chunks))
    return
end

"""
Where a tape was refused memory, which others hold that wait to be used again, let these go, the largest first, until half of what
may wait is free: else each solve of its field would make all its stages anew.
"""
function make_room!(tape::Tape, tapes)
    tape.refused || return
    tape.refused = false
    for other in sort!([t for t in tapes if t !== tape]; by = spare, rev = true)
        SPARE[] <= MAX_SPARE ÷ 2 && break
        discard!(other)
    end
    return
end
