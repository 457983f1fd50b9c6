# The memory that a call's tensors lie in.

"""
Where tensors lie. A subtype has methods of `wrap` and `on`, and of `empty_vector`; it is entered in `DEVICES` under the
number by which Python names it.
"""
abstract type Device end

"The memory of the processor."
struct Processor <: Device end

const HOST = -1
const DEVICES = Dict{Int,Device}(HOST => Processor())

"Memory that Python owns, as a vector."
wrap(::Processor, T, address::Int, n) = unsafe_wrap(Array, Ptr{T}(address), n)
wrap(T, address::Int, n) = wrap(Processor(), T, address, n)

"A vector of no elements, in a device's memory."
empty_vector(::Processor, T) = T[]

"Call a function with a device as the current one."
on(f, ::Processor) = f()

"""
    open_cuda(number) -> Int

Make a GPU known as device `number`; returns the handle of the stream on which Julia works. The extension
`PyNODECUDAExt` has the method.
"""
function open_cuda end
