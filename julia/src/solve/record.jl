# Evaluations that are kept.

"""
Evaluations of a field that are kept, in their order. A stage is dozens of objects, programs bound to its arrays for the most
part, in kilobytes; so of small ones the blocks are copied to chunks of memory, and copied back to be read.
"""
mutable struct Record{T,V<:AbstractVector{T}}
    const tape::Tape{T,V}
    const stages::Vector{Stage{T,V}}     # large ones
    const chunks::Vector{Vector{UInt8}}  # of copies of small ones
    count::Int
end

Record(tape::Tape{T,V}) where {T,V} = Record{T,V}(tape, Stage{T,V}[], Vector{UInt8}[], 0)

Base.length(r::Record) = r.count

"Bytes of a chunk of memory, and how many small stages are copied to it."
const CHUNK = 2SMALL
per_chunk(tape::Tape) = CHUNK ÷ tape.size

function new_chunk!(tape::Tape)
    isempty(tape.chunks) && return Vector{UInt8}(undef, CHUNK)
    Threads.atomic_sub!(SPARE, CHUNK)
    return pop!(tape.chunks)
end

"The chunk of the copy of stage `i`, and its place there."
place(r::Record, i::Int) = ((c, k) = divrem(i - 1, per_chunk(r.tape)); (c + 1, k * r.tape.size + 1))

"Keep one more stage, which is the record's from now on."
function keep!(r::Record, stage::Stage)
    tape = r.tape
    r.count += 1
    if tape.size == 0
        push!(r.stages, stage)
        return
    end
    chunk, at = place(r, r.count)
    chunk > length(r.chunks) && push!(r.chunks, new_chunk!(tape))
    GC.@preserve stage unsafe_store!(Ptr{Time}(pointer(stage.block)), stage.t)
    copyto!(r.chunks[chunk], at, stage.block, 1, tape.size)
    recycle!(tape, stage)
    tape.left -= tape.size
    return
end

"Keep all stages that were taken."
function keep_taken!(r::Record)
    foreach(s -> keep!(r, s), r.tape.taken)
    empty!(r.tape.taken)
    return
end

"Stages `(offset + 1):(offset + n)`, to be read: the stages behind that many of a list."
function stages_behind(r::Record, offset::Int, n::Int)
    tape = r.tape
    tape.size == 0 && return r.stages, offset
    while length(tape.window) < n
        push!(tape.window, make_small_stage(tape, tape.workspace))
    end
    for j in 1:n
        chunk, at = place(r, offset + j)
        stage = tape.window[j]
        copyto!(stage.block, 1, r.chunks[chunk], at, tape.size)
        stage.t = GC.@preserve stage unsafe_load(Ptr{Time}(pointer(stage.block)))
    end
    return tape.window, 0
end

"The state of stage `i`, which a later call may overwrite."
state_of(r::Record, i::Int) = ((stages, offset) = stages_behind(r, i - 1, 1); stages[offset + 1].u)

"Give all memory back."
function empty_record!(r::Record)
    tape = r.tape
    foreach(s -> recycle!(tape, s), r.stages)
    foreach(c -> claim!(tape, CHUNK) && push!(tape.chunks, c), r.chunks)
    tape.size == 0 || (tape.left += r.count * tape.size)
    empty!(r.stages)
    empty!(r.chunks)
    r.count = 0
    return
end
