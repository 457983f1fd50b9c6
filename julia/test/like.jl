using JLArrays: JLArray, JLArrays
using PyNODE: DEVICES, Device

JLArrays.allowscalar(false)

"A device over the processor's memory whose arrays let no entry be read or written by itself, as a GPU's do not."
struct Like <: Device end

# The bytes are Python's, or the caller's: they are not given free.
PyNODE.wrap(::Like, T, address::Int, n) =
    JLArray{T,1}(JLArrays.DataRef(_ -> nothing, unsafe_wrap(Array, Ptr{UInt8}(address), n * sizeof(T))), (n,))
PyNODE.empty_vector(::Like, T) = JLArray(T[])
PyNODE.on(f, ::Like) = f()

const LIKE = 1000
DEVICES[LIKE] = Like()
