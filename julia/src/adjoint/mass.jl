# The adjoint of M dz/dt = f(t, z), an equation of index 1.
#
# With N and K the null spaces of Mᵀ and M, a solution is determined by M z(t₀), the algebraic equations Nᵀ f = 0 giving the
# rest, which needs Nᵀ J K to be regular, J = ∂f/∂z. Its variation obeys M δz' = J δz + f_θ δθ and, in this, Nᵀ (J δz + f_θ δθ)
# = 0. Between the times λ obeys Mᵀ λ' = -Jᵀ λ, and in this Kᵀ Jᵀ λ = 0. A cotangent g of z(t) is
#
#     gᵀ δz = (g - Jᵀ N Nᵀ x)ᵀ δz - (N Nᵀ x)ᵀ f_θ δθ,    x = (M + N Nᵀ J)⁻ᵀ g,
#
# whose first part lies in the range of Mᵀ and is added to Mᵀ λ, and whose second is added to the gradient of θ. See
# Y. Cao, S. Li, L. Petzold and R. Serban, SIAM J. Sci. Comput. 24 (2003).

"The adjoint's field, -J(t, z(t))ᵀ λ, with its derivatives; `jac` is the Jacobian at a time and a state."
struct MassAdjoint{T,V<:AbstractVector{T},D<:Dense{T,V},J}
    forward::D
    jac::J
    z::V
    after::V
end

"The state at a time: within a step at the ends of the solve."
function state_at(a::MassAdjoint, t)
    ts = a.forward.ts
    a.forward.solution(a.z, clamp(t, minmax(first(ts), last(ts))...))
    return a.z
end

function rates!(dλ, a::MassAdjoint, λ, t)
    vjp!(a.forward.field, λ, state_at(a, t), t)
    dλ .= .-a.forward.field.dz
    return
end

function jacobian!(A, a::MassAdjoint, t)
    J = similar(A)
    a.jac(J, state_at(a, t), a.forward.field.θ, t)
    A .= .-transpose(J)
    return
end

"By a difference, over a small part of the step that the forward solve took there, but some roundings of the time at least."
function slopes!(dT, a::MassAdjoint{T}, λ, t) where {T}
    ts, steps = a.forward.ts, a.forward.solution.t
    i = clamp(searchsortedlast(steps, t; rev = last(ts) < first(ts)), 1, length(steps) - 1)
    δ = max(cbrt(eps(T)) * abs(steps[i + 1] - steps[i]), 16eps(t))
    low, high = clamp.((t - δ, t + δ), minmax(first(ts), last(ts))...)
    rates!(a.after, a, λ, high)
    rates!(dT, a, λ, low)
    dT .= (a.after .- dT) ./ T(high - low)
    return
end

adjoint_function(a::MassAdjoint, m::Mass) = mass_function(
    a.forward.field, (dλ, λ, p, t) -> rates!(dλ, a, λ, t), (A, λ, p, t) -> jacobian!(A, a, t),
    (dT, λ, p, t) -> slopes!(dT, a, λ, t), Matrix(transpose(m.matrix)), m.right,
)

"""
    mass_pullback(forward, g, adjoint; wants_t = true) -> Cotangents

The gradient of the solution of an equation with a mass matrix, by the adjoint equation, solved by Rodas5P. The algebraic
part of the initial state has no influence beyond its own value.
"""
function mass_pullback(fw::Dense{T,V}, g, how::Adjoint; wants_t::Bool = true) where {T,V}
    field, ts, m = rebind!(fw.field, fw.θ), fw.ts, fw.options.mass
    a = MassAdjoint(fw, Jacobian(field), similar(field.u), similar(field.u))
    # A one-step method whatever the forward solve's: it starts afresh at each of the times.
    f, alg = adjoint_function(a, m), algorithm("Rodas5P")
    n = length(field.u)
    λ, x, rate, J = zeros(T, n), zeros(T, n), zeros(T, n), zeros(T, n, n)
    integral = Integral(fw, how, length(field.dθ))
    c = Cotangents{T,V}(zeros(T, n), integral.total, zeros(length(ts)))
    for i in length(ts):-1:2
        gi = view(g, :, i)
        iszero(gi) && iszero(λ) && continue
        z = copy(state_at(a, ts[i]))
        a.jac(J, z, field.θ, ts[i])
        meet!(λ, x, field, m, gi, J)
        if !iszero(x)
            vjp_theta!(field, x, z, ts[i])
            c.θ .+= field.dθ
        end
        wants_t && (c.ts[i] = dot(gi, velocity!(rate, field, m, J, z, ts[i])))
        Base.invokelatest(adjoint_back!, λ, integral, a, f, alg, ts[i], ts[i - 1], how)
    end
    if wants_t
        value!(rate, field, fw.solution.u[1], first(ts))
        c.ts[1] = -dot(λ, rate)
    end
    for e in field.samples
        c.u0[e] .= transpose(m.matrix) * λ[e] .+ view(g, e, 1)
    end
    return c
end

"Add a cotangent of the state to λ; leaves in `x` the cotangent of f whose product in θ belongs to the gradient."
function meet!(λ, x, field::TracedField, m::Mass, g, J)
    M, N, K = m.matrix, m.left, m.right
    for e in field.samples
        Jb = J[e, e]
        x[e] .= .-(N * (transpose(N) * (transpose(M + N * (transpose(N) * Jb)) \ g[e])))
        λ[e] .= transpose(M + (Jb * K) * transpose(K)) \ (transpose(M) * λ[e] .+ g[e] .+ transpose(Jb) * x[e])
    end
    return
end

"How the state moves, dz/dt: M dz/dt = f, and what of it M does not tell from Nᵀ (J dz/dt + ∂f/∂t) = 0."
function velocity!(rate, field::TracedField, m::Mass, J, z, t)
    M, N = m.matrix, m.left
    value!(rate, field, z, t)
    slope = similar(rate)
    isempty(N) ? fill!(slope, 0) : TimeGradient(field)(slope, z, field.θ, t)
    for e in field.samples
        rate[e] .= (M + N * (transpose(N) * J[e, e])) \ (rate[e] .- N * (transpose(N) * (rate[e] .+ slope[e])))
    end
    return rate
end

"Solve the adjoint from one time to the one before, and add what the gradient of θ takes on the way."
function adjoint_back!(λ, integral, a::MassAdjoint, f, alg, from::Time, to::Time, how::Adjoint)
    fw, field, o = a.forward, a.forward.field, a.forward.options
    problem = ODEProblem{true}(f, λ, (from, to), field.θ)
    tstops = between(stops(fw), from, to)
    unsaved = (; save_everystep = false, save_start = false, save_end = false, dense = false, calck = true)
    tolerances = (; tolerances_of(fw, how)..., maxiters = o.max_steps)
    integrator = started(problem, alg; tolerances..., tstops, initializealg = NoInit(), unsaved...)
    v = similar(λ)
    while integrator.t != to
        start = integrator.t
        code = step!(integrator)
        outcome = outcome_of(code === ReturnCode.Default ? ReturnCode.Success : code, integrator.u)
        outcome === success || throw(SolveFailure("the backward solve", outcome, start))
        add_integral!(integral, start, integrator.t) do out, t
            integrator(v, t)
            vjp_theta!(field, v, state_at(a, t), t)
            out .= .-field.dθ
        end
    end
    copyto!(λ, integrator.u)
    return
end
