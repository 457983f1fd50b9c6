# Memory that several arrays lie in.

"""
    Memory(bytes, align)

Memory of which arrays are taken, one after the other, each from a multiple of `align` bytes on. They do not keep it alive.
"""
mutable struct Memory
    const block::Vector{UInt8}
    const align::Int
    used::Int
end

Memory(bytes::Int, align::Int) = Memory(in_huge_pages!(Vector{UInt8}(undef, bytes)), align, 0)

"The bytes that an array takes of a memory."
room_of(align::Int, E, n) = cld(n * sizeof(E), align) * align

"The next array of a memory, of whatever numbers lie there."
function next_array!(m::Memory, E, shape)
    x = unsafe_wrap(Array, Ptr{E}(pointer(m.block) + m.used), shape)
    m.used += room_of(m.align, E, length(x))
    m.used <= length(m.block) || throw(ArgumentError("the arrays take $(m.used) bytes of a memory of $(length(m.block))"))
    return x
end

"Bytes of memory from which on it is in huge pages, the size of these, and Linux's `MADV_HUGEPAGE`."
const WORTH_HUGE_PAGES, HUGE_PAGE, ADVICE = 2^23, 2^21, 14

"""
Let the system lay memory that is new in pages of 2 MB, where it has such. Of the usual ones a solve writes hundreds of thousands
for the first time, which takes up to a sixth of a gradient's time.
"""
function in_huge_pages!(block::Vector{UInt8})
    @static if Sys.islinux()
        length(block) < WORTH_HUGE_PAGES && return block
        first = cld(UInt(pointer(block)), HUGE_PAGE) * HUGE_PAGE
        bytes = (UInt(pointer(block)) + length(block) - first) ÷ HUGE_PAGE * HUGE_PAGE
        ccall(:madvise, Cint, (Ptr{Cvoid}, Csize_t, Cint), Ptr{Cvoid}(first), bytes, ADVICE)  # a wish, no more
    end
    return block
end
