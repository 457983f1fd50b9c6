# What a solve records of the field's evaluations, for the discrete adjoint.

"""
One evaluation of a field: `k = f(t, u)`, of which `k` is empty where nothing reads it. A heavy stage holds the residuals
too, from which `product` goes on where the other stages compute the value again.
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
    const block::Vector{UInt8}  # the memory of all its arrays, on a processor; of a small one see `Record`
end

"""
The evaluations of a field while `on`, in `taken`, with their `values` where a gradient in the times is to follow. Stages are
made as they are needed and come back to be used again; the heavy ones may take `left` bytes. Small ones have all that there is.
"""
mutable struct Tape{T,V<:AbstractVector{T}}
    on::Bool
    values::Bool
    open::Bool                               # whether stages that come back are kept: not once its field is forgotten
    left::Int
    refused::Bool                            # whether memory that came back was let go, since too much waits to be used again
    const taken::Vector{Stage{T,V}}
    const spare::Vector{Vector{Stage{T,V}}}  # to be used again, by what they hold
    const chunks::Vector{Vector{UInt8}}
    const window::Vector{Stage{T,V}}         # where small stages are read
    const workspace::Union{Workspace{T,V},Callback{T}}
    const bytes::Int                         # of residuals; 0 where there are none
    const size::Int                          # of a small stage's block; 0 where stages are large
end

function Tape{T,V}(workspace, bytes::Int, size::Int) where {T,V}
    S = Stage{T,V}
    return Tape{T,V}(false, false, true, 0, false, S[], [S[] for _ in 1:4], Vector{UInt8}[], S[], workspace, bytes, size)
end

"Bytes of arrays up to which a stage is small."
const SMALL = 2^12

function Tape(w::Workspace{T,V}) where {T,V}
    bytes = residual_bytes(w, V === Vector{T} ? CACHE_LINE : 1)
    size = isempty(w.blocks) && V === Vector{T} ? block_size(w) : 0
    return Tape{T,V}(w, bytes, size > SMALL ? 0 : size)
end

Tape(c::Callback{T}) where {T} = Tape{T,Vector{T}}(c, c.bytes, 0)

"Start to record evaluations, of which the heavy ones may take so many bytes."
function switch_on!(tape::Tape, values::Bool, left::Int)
    tape.on, tape.values, tape.left = true, values, left
    return
end

function take!(tape::Tape)
    small = tape.size > 0
    room = tape.left - (1 + tape.values) * sizeof(tape.workspace.u)
    stage = next_stage!(tape, tape.bytes > 0 && (small || tape.bytes <= room), small || tape.values)
    tape.left -= stage.bytes
    push!(tape.taken, stage)
    return stage
end

"The stages to be used again that are heavy, or not, and have values, or not."
free_stages(tape::Tape, heavy::Bool, values::Bool) = tape.spare[1 + heavy + 2values]

function next_stage!(tape::Tape, heavy::Bool, values::Bool)
    free = free_stages(tape, heavy, values)
    isempty(free) && return make_stage(tape, heavy, values)
    stage = pop!(free)
    counts(tape) && Threads.atomic_sub!(SPARE, stage.bytes)
    return stage
end

make_stage(tape::Tape, heavy::Bool, values::Bool) =
    tape.size > 0 ? make_small_stage(tape, tape.workspace) : make_stage(tape, tape.workspace, heavy, values)

function make_stage(tape::Tape{T,V}, w, heavy::Bool, values::Bool) where {T,V}
    u, k = similar(w.u), similar(w.u, values ? length(w.u) : 0)
    record, product, graph = heavy ? residuals_of(w, u) : (identity_of, identity_of, 0)
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, stage_bytes(tape, u, k, heavy), graph, UInt8[])
end

# On a processor all arrays of a stage lie in one block.
function make_stage(tape::Tape{T,V}, w::Workspace{T,Vector{T}}, heavy::Bool, values::Bool) where {T,V}
    numbers = length(w.u)
    memory = Memory((1 + values) * room_of(CACHE_LINE, T, numbers) + heavy * tape.bytes, CACHE_LINE)
    u, k = next_array!(memory, T, (numbers,)), next_array!(memory, T, (values ? numbers : 0,))
    record, product, _ = heavy ? residuals_of(w, u, new_residuals(w, memory)) : (identity_of, identity_of, 0)
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, stage_bytes(tape, u, k, heavy), 0, memory.block)
end

stage_bytes(tape::Tape, u, k, heavy::Bool) = sizeof(u) + sizeof(k) + heavy * tape.bytes

"Bytes to a multiple of which the arrays of a large stage are aligned."
const CACHE_LINE = 64

"The programs that write residuals, and read them, and Python's number of these."
residuals_of(w::Workspace, u, residuals = new_residuals(w)) =
    bind(w, w.kernel.record; u, residuals), bind(w, w.kernel.replay; u, residuals), 0

function residuals_of(c::Callback, u)
    n = (c.graphs[] += 1)
    return GraphProgram(c, record_function, n, u), GraphProgram(c, replay_function, n, u), n
end

identity_of(_) = nothing

"Bytes to a multiple of which the arrays of a small stage are aligned, as vector instructions have it."
const VECTOR = 16

"The bytes of a small stage's block: its time, its state and value, and the residuals."
function block_size(w::Workspace{T}) where {T}
    return room_of(VECTOR, Time, 1) + 2room_of(VECTOR, T, length(w.u)) + residual_bytes(w, VECTOR)
end

"A stage whose arrays lie one after the other in its block, behind its time."
function make_small_stage(tape::Tape{T,V}, w::Workspace) where {T,V}
    memory, heavy = Memory(tape.size, VECTOR), tape.bytes > 0
    fill!(memory.block, 0)
    next_array!(memory, Time, (1,))
    u, k = next_array!(memory, T, (length(w.u),)), next_array!(memory, T, (length(w.u),))
    record, product, _ = heavy ? residuals_of(w, u, new_residuals(w, memory)) : (identity_of, identity_of, 0)
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, tape.size, 0, memory.block)
end

"Whether a tape's stages are counted in `SPARE`: of small ones there are as many as an evaluated step has."
counts(tape::Tape) = tape.size == 0

"Give a stage back."
function recycle!(tape::Tape, stage::Stage)
    tape.left += stage.bytes
    stage.graph == 0 || drop!(tape.workspace, stage.graph)
    counts(tape) && !claim!(tape, stage.bytes) && return
    push!(free_stages(tape, stage.heavy, !isempty(stage.k)), stage)
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
const MAX_SPARE = 2^30

"Whether so many more bytes may wait to be used again; if so, they are counted."
function claim!(tape::Tape, bytes::Int)
    tape.open || return false
    if SPARE[] + bytes > MAX_SPARE
        tape.refused = true
        return false
    end
    Threads.atomic_add!(SPARE, bytes)
    return true
end

"Bytes that wait to be used again."
spare(tape::Tape) =
    (counts(tape) ? sum(s -> s.bytes, Iterators.flatten(tape.spare); init = 0) : 0) + sum(length, tape.chunks; init = 0)

"Let go of what waits to be used again."
function discard!(tape::Tape)
    Threads.atomic_sub!(SPARE, spare(tape))
    foreach(empty!, tape.spare)
    empty!(tape.chunks)
    return
end

"Let go of what waits to be used again, and of what comes back: the field is forgotten, though its solves may still be kept."
function close!(tape::Tape)
    discard!(tape)
    tape.open = false
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
