# The gradient: the exact transpose of the accepted steps, with their lengths and their noise held.
#
# Of a point Y = u + h Σ_j a_j k_j + Σ_j g_j ∘ η_j, η_j = Σ_m b_mj ξ_m, with the cotangent Ȳ: ū gets Ȳ, k̄_j gets h a_j Ȳ, and ḡ_j
# gets Ȳ ∘ η_j, or of a matrix Ȳ η_jᵀ sample by sample.

"What goes backwards through the steps of a solve."
struct Pull{T,E<:Equation{T},G}
    equation::E
    tab::StochasticTableau{T}
    y::Vector{T}           # a state at which a step evaluates
    k::Vector{Vector{T}}   # drifts
    g::Vector{G}           # diffusions
    k̄::Vector{Vector{T}}
    ḡ::Vector{G}
    ξ::Matrix{T}           # random factors
    η::Vector{T}
    u::Vector{T}
    ū::Vector{T}
    λ::Vector{T}           # cotangent of the state at the end of the step
    θ̄::Tuple{Vector{T},Vector{T}}
end

function Pull(s::StochasticSolve{T}) where {T}
    e, q = s.equation, s.request
    backwards = q.sensitivity === :backsolve
    tab = stochastic_tableau(backwards ? "EulerHeun" : q.solver, q.stratonovich, T)
    state() = zeros(T, size_of(e))
    several(make, n) = [make() for _ in 1:n]
    noise, _ = noises(e)
    diffusions() = several(() -> make_diffusion(e), tab.diffusions)
    return Pull(
        e, tab, state(), several(state, tab.drifts), diffusions(), several(state, tab.drifts), diffusions(),
        zeros(T, FACTORS, noise), zeros(T, noise), state(), state(), state(),
        (zeros(T, length(e.drift.dθ)), zeros(T, length(e.diffusion.dθ))),
    )
end

"The random factor of diffusion `j` at a point; `false` if it has none."
function factor!(η, p::Point, ξ, j)
    b = view(p.b, :, j)
    all(iszero, b) && return false
    fill!(η, 0)
    for m in 1:FACTORS
        iszero(b[m]) || (η .+= b[m] .* view(ξ, m, :))
    end
    return true
end

"The state of a point."
function state!(y, q::Pull, p::Point, u, h)
    copyto!(y, u)
    for j in eachindex(p.a)
        iszero(p.a[j]) || (y .+= (h * p.a[j]) .* q.k[j])
    end
    for j in axes(p.b, 2)
        factor!(q.η, p, q.ξ, j) && add_product!(y, q.g[j], q.η, true)
    end
    return y
end

"Pull the cotangent of a point's state back to the state before the step and to the evaluations."
function pull_point!(q::Pull, p::Point, ȳ, h)
    q.ū .+= ȳ
    for j in eachindex(p.a)
        iszero(p.a[j]) || (q.k̄[j] .+= (h * p.a[j]) .* ȳ)
    end
    for j in axes(p.b, 2)
        factor!(q.η, p, q.ξ, j) && add_cotangent!(q.ḡ[j], ȳ, q.η, true)
    end
    return
end

"Take step `n` again, and record its evaluations; returns its length."
function retake!(q::Pull{T}, path::Path{T}, n::Int) where {T}
    e, t, h = q.equation, path.t[n], path.h[n]
    N, M = length(q.u), size(q.ξ, 2)
    copyto!(q.u, 1, path.u, (n - 1) * N + 1, N)
    noise = ((n - 1) * M + 1):(n * M)
    dW = view(path.dW, noise)
    factors!(q.ξ, h, dW, isempty(path.dZ) ? dW : view(path.dZ, noise))  # who has no dZ reads no factor of it
    record!(e, true)
    i = j = 0
    for p in q.tab.stages
        y = state!(q.y, q, p, q.u, T(h))
        p.drift ? drift!(q.k[i += 1], e, y, t + p.c * h) : diffusion!(numbers(q.g[j += 1]), e, y, t + p.c * h)
    end
    return h
end

"Pull `λ` back through step `n`."
function pull_step!(q::Pull{T}, path::Path{T}, n::Int) where {T}
    e = q.equation
    h = retake!(q, path, n)
    fill!(q.ū, 0)
    foreach(x -> fill!(x, 0), q.k̄)
    foreach(x -> fill!(numbers(x), 0), q.ḡ)
    pull_point!(q, q.tab.last, q.λ, T(h))
    i, j = q.tab.drifts, q.tab.diffusions
    for p in Iterators.reverse(q.tab.stages)
        ȳ = fill!(q.λ, 0)
        if p.drift
            pull_drift!(ȳ, q.θ̄[1], e, q.k̄[i], i)
            i -= 1
        else
            pull_diffusion!(ȳ, q.θ̄[2], e, numbers(q.ḡ[j]), j)
            j -= 1
        end
        pull_point!(q, p, ȳ, T(h))
    end
    copyto!(q.λ, q.ū)
    return
end

"""
    stochastic_pullback(solve, g) -> Pull

The gradient, exactly that of the numerical solution or by a backward solve: `g` is `(state, time)`, the cotangents of its
values. The cotangent of the initial state is left in `λ`, those of the two `θ` in `θ̄`.
"""
function stochastic_pullback(s::StochasticSolve, g)
    e = s.equation
    (e.drift.counts[3], e.diffusion.counts[3]) == s.bound || (bind!(e.drift, s.θ[1]); bind!(e.diffusion, s.θ[2]))
    try
        return Base.invokelatest(pull_all!, Pull(s), s, g)
    finally
        record!(e, false)
    end
end

function pull_all!(q::Pull, s::StochasticSolve, g)
    backwards = s.request.sensitivity === :backsolve
    step! = backwards ? backsolve_step! : pull_step!
    for column in s.times:-1:2
        q.λ .+= view(g, :, column)
        backwards && copyto!(q.u, state_at(s, column))
        first = column == 2 ? 1 : s.path.ends[column - 2] + 1
        for n in s.path.ends[column - 1]:-1:first
            step!(q, s.path, n)
        end
        backwards && check_course(q, s, column - 1)
    end
    q.λ .+= view(g, :, 1)
    return q
end
