module PyNODECUDAExt

using CUDA: CuArray, CuPtr, CuVector, device!, stream
using PyNODE: PyNODE, DEVICES, Device

"The memory of a GPU."
struct GPU <: Device
    number::Int
end

PyNODE.empty_vector(::GPU, T) = CuVector{T}(undef, 0)
PyNODE.wrap(::GPU, T, address::Int, n) = unsafe_wrap(CuArray, CuPtr{T}(UInt(address)), n)
# The device's context stays the thread's, which had perhaps none: PyTorch's products want one. Python sets its device back.
PyNODE.on(f, d::GPU) = (device!(d.number); f())

function PyNODE.open_cuda(number::Int)
    DEVICES[number] = GPU(number)
    return device!(() -> Int(UInt(stream().handle)), number)
end

end
