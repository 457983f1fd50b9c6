# Slopes estimated from data, which the extension `PyNODEDiffEqFluxExt` has DiffEqFlux compute.

"""
    collocation!(du, u, data, ts, kernel, bandwidth)

Write the derivative and the value of the smoothed `data`, `(series, time)`. `bandwidth` is `nothing` for DiffEqFlux's own.
"""
function collocation! end

"""
    collocate(ints, kernel, bandwidth)

Integers: element type (0 Float32, 1 Float64), number of series, number of times, and the addresses of the times, the
data, and the results: derivative and value. `bandwidth` is 0 for DiffEqFlux's own.
"""
function collocate(ints::Int, kernel::AbstractString, bandwidth::Real)
    need(:diffeqflux)
    dtype, n, times, t, data, du, u = wrap(Int, ints, 7)
    T = dtype == 0 ? Float32 : Float64
    matrix(address) = reshape(wrap(T, address, n * times), n, times)
    width = bandwidth == 0 ? nothing : T(bandwidth)
    Base.invokelatest(collocation!, matrix(du), matrix(u), matrix(data), wrap(T, t, times), kernel, width)
    return
end
