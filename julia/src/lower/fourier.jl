# Discrete Fourier transforms of real numbers, along the first dimension: their sums with the cosines and the sines, and
# sums of cosines and sines, each the other's transposed.
#
# By FFTW where it is in the environment, which loads the extension `PyNODEFFTWExt`; products with matrices otherwise.

const FFTW_PACKAGE = Base.PkgId(Base.UUID("7a1cc6ca-52ef-59f5-83cd-3a7055c09341"), "FFTW")

"Points beyond which the matrices would fill the memory."
const MANY_POINTS = 4096

"The matrices of cosines and of sines."
struct DenseWaves{M}
    cos::M
    sin::M
end

"""
The same by fast transforms between a column of real numbers, as many as there are points, and its frequencies from zero
to half of the points: `transform!(frequencies, column)`, and `sum!(column, frequencies)` without a factor.
"""
struct FastWaves{F,G,R,C}
    transform!::F
    sum!::G
    column::R
    frequencies::C
end

function lower_op!(l::Lowering, ::Val{:fourier}, i, n, into)
    x, b = materialise!(l, n.inputs[1]; contiguous = true), destination!(l, n, into)
    shape = l.graph.nodes[n.inputs[1]].shape
    waves = waves!(l, n, shape[1], n.shape[1] ÷ 2)
    emit!(l, :(to_waves!($(columns!(l, b, n.shape)), $(columns!(l, x, shape)), $waves)))
    l.buffer[i] = b
end

function lower_op!(l::Lowering, ::Val{:fourier_sum}, i, n, into)
    re, im = (materialise!(l, j; contiguous = true) for j in n.inputs)
    b = destination!(l, n, into)
    shape = l.graph.nodes[n.inputs[1]].shape
    waves = waves!(l, n, shape[1], n.shape[1])
    parts = columns!(l, re, shape), columns!(l, im, shape)
    emit!(l, :(from_waves!($(columns!(l, b, n.shape)), $(parts...), $waves)))
    l.buffer[i] = b
end

columns!(l::Lowering, b::Int, shape) = bufsym(reshaped!(l, b, grouped(shape, [[1], collect(2:length(shape))])))

function waves!(l::Lowering, n::Node, from::Int, to::Int)
    points = Int(n.attrs["points"])
    isfast(points) && load_fftw(points)
    make(like, _, _) = Base.invokelatest(waves_for, like, points, from, to)
    return bufsym(newbuffer!(l, make; contiguous = false, alias = false))
end

"""
Whether a fast transform of so many points takes less time than a product with the matrix: from about a hundred on, and
from eight times as many where the number has large factors.
"""
function isfast(points::Int)
    rest = points
    for factor in (2, 3, 5, 7, 11, 13)
        while rest % factor == 0
            rest ÷= factor
        end
    end
    return points >= (rest == 1 ? 100 : 800)
end

function load_fftw(points::Int)
    if Base.locate_package(FFTW_PACKAGE) !== nothing
        load((FFTW_PACKAGE,))
    elseif points > MANY_POINTS
        throw(FieldFailure(
            "the field takes a Fourier transform over $points points, and without FFTW those of up to $MANY_POINTS are " *
            "computed, as products of matrices: add FFTW to the Julia environment (`pynode julia install` does)",
        ))
    end
    return
end

"What computes `to` sums of `from` numbers, for arrays like this one."
function waves_for(like, points::Int, from::Int, to::Int)
    T = eltype(like)
    if like isa Host && T in (Float32, Float64) && isfast(points)
        fast = fast_transforms(T, points)
        fast === nothing || return FastWaves(fast..., zeros(T, points), zeros(Complex{T}, points ÷ 2 + 1))
    end
    matrix(wave) = [T(wave(2 * mod(j * k, points) / points)) for k in 0:(to - 1), j in 0:(from - 1)]
    placed(m) = like isa Host ? m : copyto!(similar(like, T, to, from), m)
    return DenseWaves(placed(matrix(cospi)), placed(matrix(sinpi)))
end

"The two functions of `FastWaves`, for so many real numbers of a type; `nothing` without FFTW."
fast_transforms(T, points) = nothing

function to_waves!(y, x, waves::DenseWaves)
    n = size(waves.cos, 1)
    mul!(view(y, 1:n, :), waves.cos, x)
    mul!(view(y, (n + 1):(2n), :), waves.sin, x)
    return y
end

function from_waves!(y, re, im, waves::DenseWaves)
    mul!(y, waves.cos, re)
    return mul!(y, waves.sin, im, -1, 1)
end

function to_waves!(y, x, waves::FastWaves)
    (; column, frequencies) = waves
    points, half, n = length(column), length(frequencies), size(y, 1) ÷ 2
    fill!(column, 0)
    @inbounds for s in axes(x, 2)
        for j in axes(x, 1)
            column[j] = x[j, s]
        end
        waves.transform!(frequencies, column)
        for k in 1:n
            # Of real numbers, the frequencies beyond half are those below in reverse, conjugate.
            f = k <= half ? frequencies[k] : conj(frequencies[points - k + 2])
            y[k, s] = real(f)
            y[n + k, s] = -imag(f)
        end
    end
    return y
end

function from_waves!(y, re, im, waves::FastWaves)
    (; column, frequencies) = waves
    points, half = length(column), length(frequencies)
    @inbounds for s in axes(y, 2)
        fill!(frequencies, 0)
        for k in axes(re, 1)
            f = complex(re[k, s], im[k, s])
            if k <= half
                frequencies[k] += f
            else
                frequencies[points - k + 2] += conj(f)
            end
        end
        for k in 2:((points + 1) ÷ 2)  # which the transform takes twice, the second time conjugate
            frequencies[k] /= 2
        end
        waves.sum!(column, frequencies)
        for j in axes(y, 1)
            y[j, s] = column[j]
        end
    end
    return y
end
