module PyNODEFFTWExt

using FFTW: FFTW, plan_brfft, plan_rfft
using LinearAlgebra: mul!
using PyNODE: PyNODE

# One thread: what is transformed is a column of a batch, or one of several samples on threads of their own.
const HOW = (flags = FFTW.ESTIMATE, num_threads = 1)

function PyNODE.fast_transforms(::Type{T}, points::Int) where {T<:Union{Float32,Float64}}
    forward = plan_rfft(zeros(T, points); HOW...)
    backward = plan_brfft(zeros(Complex{T}, points ÷ 2 + 1), points; HOW...)
    return (y, x) -> mul!(y, forward, x), (y, x) -> mul!(y, backward, x)
end

end
