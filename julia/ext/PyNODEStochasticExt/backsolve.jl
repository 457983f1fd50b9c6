# The gradient by a backward solve, of SDEs in Stratonovich's sense.
#
# State and cotangent together are one such SDE, which runs back along the noise of the forward solve:
# dz = f dt + g ∘ dW, dλ = -λ ∂f/∂z dt - λ ∂g/∂z ∘ dW, and the cotangent of θ is the integral of λ ∂f/∂θ dt + λ ∂g/∂θ ∘ dW.
#
# Source: X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, "Scalable gradients for stochastic differential equations", AISTATS
# 2020, section 3.

"Go back over step `n`, from the state `u` and the cotangent `λ` at its end to those at its start, by one step of Euler-Heun."
function backsolve_step!(q::Pull{T}, path::Path{T}, n::Int) where {T}
    e, t, h = q.equation, path.t[n], T(path.h[n])
    M = length(q.η)
    dW = copyto!(q.η, 1, path.dW, (n - 1) * M + 1, M)
    record!(e, true)
    fill!(q.ū, 0)
    y, λ = copyto!(q.y, q.u), q.λ
    for (i, at) in enumerate((t + path.h[n], t))
        drift!(q.k[i], e, y, at)
        diffusion!(numbers(q.g[i]), e, y, at)
        q.k̄[i] .= (h / 2) .* λ
        fill!(numbers(q.ḡ[i]), 0)
        add_cotangent!(q.ḡ[i], λ, dW, T(1 // 2))
        pull_drift!(q.ū, q.θ̄[1], e, q.k̄[i], i)
        pull_diffusion!(q.ū, q.θ̄[2], e, numbers(q.ḡ[i]), i)
        i == 2 && break
        y .-= h .* q.k[1]
        add_product!(y, q.g[1], dW, -one(T))
        λ = q.λ .+ 2 .* q.ū
    end
    for i in 1:2
        q.u .-= (h / 2) .* q.k[i]
        add_product!(q.u, q.g[i], dW, T(-1 // 2))
    end
    q.λ .+= q.ū
    return
end

"The state of the forward solve at a time that was asked for."
state_at(s::StochasticSolve, column) = view(s.path.u, ((column - 1) * size_of(s.equation) + 1):(column * size_of(s.equation)))

"Throw where the state that was solved for backwards is not the forward solve's: the gradient would be wrong."
function check_course(q::Pull, s::StochasticSolve, column)
    n = s.equation.n
    most = maximum(c -> maximum(abs, view(state_at(s, c), 1:n)), 1:(s.times))
    drift = maximum(i -> abs(q.u[i] - state_at(s, column)[i]), 1:n)
    t = s.path.t[column == 1 ? 1 : s.path.ends[column - 1] + 1]
    isfinite(drift) && all(isfinite, q.λ) || throw(SolveFailure("the backward solve", non_finite, t))
    drift <= DRIFT * most || throw(SolveFailure("the backward solve", off_trajectory, t))
    return
end
