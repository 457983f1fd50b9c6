# Brownian motion from a seed.

"""
The increments of Brownian motions, of which the first `n` are drawn and the others, those of integrals that have no noise,
are zero.
"""
struct Increments
    n::Int
end

function (d::Increments)(dW, W, dt, u, p, t, rng)
    fill!(dW, 0)
    x = view(dW, 1:d.n)
    randn!(rng, x)
    x .*= sqrt(abs(dt))
    return dW
end

"""
Where Brownian motions stand within a step whose increments `Wh` are known, at the fraction `q` of its length `h`.

Where it cuts the step that is under way itself, DiffEqNoiseProcess gives the length that is left of it for `h`.
"""
struct Bridges
    n::Int
end

function (d::Bridges)(dW, W, W0, Wh, q, h, u, p, t, rng)
    h = Wh === W.dW || Wh === W.dZ ? W.dt : h
    fill!(dW, 0)
    x = view(dW, 1:d.n)
    randn!(rng, x)
    dW .= sqrt(max(q * (1 - q) * abs(h), 0)) .* dW .+ q .* Wh
    return dW
end

"The same with results in memory of their own."
struct Fresh{F}
    f::F
end

(d::Fresh)(dW, rest...) = d.f(similar(dW), rest...)

"""
The noise of a solve: `length` Brownian motions, `n` of which are drawn; `twice` where the method needs a second process, as
those of order 1.5 do. Of steps that are rejected the rest of the noise is kept (RSwM3); in memory of its own, since DiffEqNoiseProcess writes
over what its stacks share.

Source: C. Rackauckas, Q. Nie, "Adaptive methods for stochastic differential equations via natural embeddings and rejection
sampling with memory", DCDS-B 22 (2017).
"""
function brownian(T, t0, length::Int, n::Int, twice::Bool, seed::Int, adaptive::Bool)
    W, Z = zeros(T, length), twice ? zeros(T, length) : nothing
    how = (; rng = Xoshiro(seed), reseed = false, save_everystep = false)
    adaptive || return NoiseProcess{true}(
        t0, W, Z, Increments(n), Bridges(n); rswm = RSWM(adaptivealg = :RSwM1), how...,
    )
    return NoiseProcess{false}(
        t0, W, Z, Fresh(Increments(n)), Fresh(Bridges(n)); rswm = RSWM(adaptivealg = :RSwM3), how...,
    )
end
