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
    const graph::Int  # Python's number of the residuals, where Python has them
end

"""
The evaluations of a field while `on`, in `taken`. Stages are made as they are needed and come back to be used again; the
heavy ones may take `left` bytes.
"""
mutable struct Tape{T,V<:AbstractVector{T}}
    on::Bool
    left::Int
    const taken::Vector{Stage{T,V}}
    const light::Vector{Stage{T,V}}  # to be used again
    const heavy::Vector{Stage{T,V}}
    const workspace::Union{Workspace{T,V},Callback{T}}
    const bytes::Int                 # of a heavy stage; 0 where there are no residuals
end

function Tape(w::Workspace{T,V}) where {T,V}
    residuals = (w.kernel.graph.nodes[i] for i in w.kernel.residuals)
    bytes = sum(n -> elements(n.shape, w.batch) * sizeof(eltype_of(n, T)), residuals; init = 0)
    bytes == 0 || (bytes += 2sizeof(w.u))
    return Tape{T,V}(false, 0, Stage{T,V}[], Stage{T,V}[], Stage{T,V}[], w, bytes)
end

Tape(c::Callback{T}) where {T} =
    Tape{T,Vector{T}}(false, 0, Stage{T,Vector{T}}[], Stage{T,Vector{T}}[], Stage{T,Vector{T}}[], c, c.bytes)

function take!(tape::Tape)
    heavy = 0 < tape.bytes <= tape.left
    spare = heavy ? tape.heavy : tape.light
    stage = isempty(spare) ? make_stage(tape, tape.workspace, heavy) : reuse!(spare)
    tape.left -= stage.bytes
    push!(tape.taken, stage)
    return stage
end

function reuse!(spare)
    stage = pop!(spare)
    Threads.atomic_sub!(SPARE, stage.bytes)
    return stage
end

function make_stage(tape::Tape{T,V}, w::Workspace, heavy::Bool) where {T,V}
    u, k = similar(w.u), similar(w.u)
    residuals = heavy ? new_residuals(w) : no_residuals(w)
    record = heavy ? bind(w, w.kernel.record; u, du = k, residuals) : identity_of
    product = heavy ? bind(w, w.kernel.replay; u, residuals) : identity_of
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, heavy ? tape.bytes : 2sizeof(u), 0)
end

function make_stage(tape::Tape{T,V}, c::Callback, heavy::Bool) where {T,V}
    u, k = similar(c.u), similar(c.u)
    n = heavy ? (c.graphs[] += 1) : 0
    record = heavy ? GraphProgram(c, record_function, n, u, k) : identity_of
    product = heavy ? GraphProgram(c, replay_function, n, u, k) : identity_of
    return Stage{T,V}(zero(Time), u, k, heavy, record, product, heavy ? tape.bytes : 2sizeof(u), n)
end

identity_of(_) = nothing

"Give a stage back."
function recycle!(tape::Tape, stage::Stage)
    tape.left += stage.bytes
    stage.graph == 0 || drop!(tape.workspace, stage.graph)
    SPARE[] + stage.bytes > MAX_SPARE && return
    Threads.atomic_add!(SPARE, stage.bytes)
    push!(stage.heavy ? tape.heavy : tape.light, stage)
    return
end

"Give all stages back that were taken."
function recycle_taken!(tape::Tape)
    foreach(s -> recycle!(tape, s), tape.taken)
    empty!(tape.taken)
    return
end

"Bytes of the stages, of all fields, that wait to be used again, and how many may."
const SPARE = Threads.Atomic{Int}(0)
const MAX_SPARE = 2^29

"Let go of the stages that wait to be used again."
function discard!(tape::Tape)
    for spare in (tape.light, tape.heavy)
        Threads.atomic_sub!(SPARE, sum(s -> s.bytes, spare; init = 0))
        empty!(spare)
    end
    return
end
