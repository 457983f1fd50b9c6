# The gradient of θ as an integral along a backward solve. Its integrand may change faster than the adjoint, whose steps say
# nothing of that: of z' = p sin(t) the adjoint is constant.

"Nodes of Kronrod's rule on [0, 1] with its weights, and those of Gauss's rule, which has every second node."
const KRONROD = let x = (0.960491268708020283, 0.774596669241483377, 0.434243749346802558), k = (0.104656226026467265,
        0.268488089868333440, 0.401397414775962222), g = (0.0, 5 / 9, 0.0)
    side(sign) = Tuple(((1 + sign * x[i]) / 2, k[i] / 2, g[i] / 2) for i in 1:3)
    (side(-1)..., (0.5, 0.450916538658474142 / 2, 4 / 9), side(1)...)
end

"""
    Integral(forward, adjoint, n)

For the first n numbers of θ the sum of integrals over pieces of time. A piece is cut in two until the two rules differ by no
more than the tolerances allow the whole sum, in the mean over θ. An absolute tolerance is one of the state: it is made less
for numbers of θ above 1, and for states below 1. `left` is how many pieces there may still be.
"""
mutable struct Integral{T,V<:AbstractVector{T}}
    const total::V
    const abstol::V
    const reltol::T
    const value::V
    const gauss::V
    const kronrod::V
    left::Int
end

function Integral(fw::Dense{T,V}, a::Adjoint, n = length(fw.θ)) where {T,V}
    θ, (; reltol, abstol) = fw.θ[1:n], tolerances_of(fw, a)
    size = min(1, largest(fw))
    atol = max.(abstol * (size > 0 ? size : one(T)) ./ max.(1, abs.(θ)), floatmin(T))
    return Integral{T,V}(zero(θ), atol, max(reltol, 16eps(T)), similar(θ), similar(θ), similar(θ), 10fw.options.max_steps)
end

"The largest absolute value of the states that a solve went through."
largest(fw::Dense) = maximum(u -> maximum(abs, u), fw.solution.u)

"The tolerances of a backward solve."
tolerances_of(fw::Dense{T}, a::Adjoint) where {T} =
    (; reltol = T(a.rtol > 0 ? a.rtol : fw.options.rtol), abstol = T(a.atol > 0 ? a.atol : fw.options.atol))

"Add the integral from one time to another of what `integrand!(out, t)` computes."
function add_integral!(integrand!, x::Integral{T}, from, to) where {T}
    (isempty(x.total) || from == to) && return
    pieces = [(from, to)]
    while !isempty(pieces)
        a, b = pop!(pieces)
        x.left -= 1
        x.left >= 0 || throw(SolveFailure("the backward solve", max_steps, b))
        fill!(x.gauss, 0)
        fill!(x.kronrod, 0)
        for (node, k, g) in KRONROD
            integrand!(x.value, a + node * (b - a))
            x.kronrod .+= T(k * (b - a)) .* x.value
            iszero(g) || (x.gauss .+= T(g * (b - a)) .* x.value)
        end
        x.value .= (x.kronrod .- x.gauss) ./ (x.abstol .+ x.reltol .* max.(abs.(x.total), abs.(x.total .+ x.kronrod)))
        error = sqrt(sum(abs2, x.value) / length(x.value))
        isfinite(error) || throw(SolveFailure("the backward solve", non_finite, b))
        middle = (a + b) / 2
        if error <= 1 || abs(b - a) <= 64eps(max(abs(a), abs(b)))
            x.total .+= x.kronrod
        else
            push!(pieces, (middle, b), (a, middle))
        end
    end
    return
end

"""
    stops(forward) -> times

Where a backward solve is to stop: it is not to step over what only a few of the forward solve's steps saw, as a pulse, which may
leave no trace at the points that its own steps look at; nor over kinks of the field.
"""
stops(fw::Dense) = union(fw.solution.t[1:4:end], between(fw.options.kinks, first(fw.ts), last(fw.ts)))
