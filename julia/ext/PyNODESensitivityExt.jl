module PyNODESensitivityExt

using LinearAlgebra: norm
using PyNODE: DRIFT, PyNODE, Adjoint, Dense, SolveFailure, after, algorithm, max_steps, non_finite, off_trajectory,
    outcome_of, started, success
using SciMLBase: SciMLBase, AbstractODEAlgorithm, AbstractODEProblem, CallbackSet, DiscreteCallback, remake, solve, solve!
using SciMLSensitivity: AdjointSensitivityIntegrand, BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint,
    ODEAdjointProblem, QuadratureAdjoint, ZygoteVJP, adjoint_sensitivities, quadgk, setproperties

"""
The cotangents of a solution's values, which the backward solve meets from the last time on to the second. A solver holds
times within a few roundings of one another for the same, so that a step may pass a time without a stop there: what was
passed is added with what was met.
"""
mutable struct Jumps{T,G<:AbstractMatrix}
    const ts::Vector{T}
    const g::G
    next::Int
end

Jumps(ts, g) = Jumps(ts, g, length(ts))

remain(j::Jumps, t) = j.next > 1 && !after(j.ts[j.next], t, first(j.ts) - last(j.ts))

function add!(u, j::Jumps, t)
    while remain(j, t)
        view(u, 1:size(j.g, 1)) .+= view(j.g, :, j.next)
        j.next -= 1
    end
    return u
end

"""
The states that backsolve's, which it starts from anew at each of the times, should come to: `next` is the one ahead.
"""
mutable struct Course{D<:Dense,T}
    const forward::D
    const drift::T
    next::Int
end

function Course(fw::Dense{T}) where {T}
    size = maximum(u -> maximum(abs, u), fw.solution.u)
    return Course(fw, T(DRIFT * size + 100 * fw.options.atol), length(fw.ts) - 1)
end

"Compare the state, which is at the end of `u`, where a time has been reached."
function follow!(c::Course, u, t)
    ts = c.forward.ts
    while c.next > 0 && !after(ts[c.next], t, first(ts) - last(ts))
        reached, c.next = ts[c.next], c.next - 1
        state = c.forward.solution(reached)
        drift = maximum(abs, view(u, (length(u) - length(state) + 1):length(u)) .- state)
        isfinite(drift) || throw(SolveFailure("the backward solve", non_finite, reached))
        drift <= c.drift || throw(SolveFailure("the backward solve", off_trajectory, reached))
    end
    return false
end

"""
An algorithm as SciMLSensitivity gets it, which looks at no return code: a solve that fails throws a `SolveFailure`.
`jumps` are those of a backward solve, `nothing` where SciMLSensitivity makes a part of the forward solve again; `course`
is backsolve's.
"""
struct Watched{A,J,C,K<:NamedTuple} <: AbstractODEAlgorithm
    algorithm::A
    jumps::J
    course::C
    keywords::K
end

for trait in (:isadaptive, :isautodifferentiable, :allows_arbitrary_number_types, :forwarddiffs_model, :forwarddiffs_model_time)
    @eval SciMLBase.$trait(w::Watched) = SciMLBase.$trait(w.algorithm)
end

function SciMLBase.__solve(problem::AbstractODEProblem, w::Watched; callback = nothing, tstops = nothing, keywords...)
    jumps = w.jumps
    if jumps !== nothing
        problem = remake(problem; u0 = add!(copy(problem.u0), jumps, first(problem.tspan)))
        save = get(keywords, :save_everystep, true)
        jump = DiscreteCallback(
            (u, t, integrator) -> remain(jumps, t), integrator -> add!(integrator.u, jumps, integrator.t);
            save_positions = (save, save),
        )
        course = w.course
        look = course === nothing ? nothing : DiscreteCallback((u, t, _) -> follow!(course, u, t), Returns(nothing))
        # The jump is the last, since Gauss's sum over the step that ends here is another callback, as is backsolve's reset
        # of the state, before which that is looked at.
        callback, tstops = CallbackSet(look, callback, jump), tstops === nothing ? jumps.ts : [tstops; jumps.ts]
    end
    stops = tstops === nothing ? (;) : (; tstops)
    given = (; keywords..., w.keywords..., stops..., callback, merge_callbacks = false)
    integrator = started(problem, w.algorithm; given...)
    solution = solve!(integrator)
    outcome = outcome_of(solution.retcode, last(solution.u), integrator.u)
    outcome === success || throw(SolveFailure("the backward solve", outcome, last(solution.t)))
    # Gauss's method keeps such a part in the place of the whole, of the same type.
    return jumps === nothing ? setproperties(solution, (; alg = w)) : solution
end

# The field carries its products (`ODEFunction(vjp, vjp_p)`), which SciMLSensitivity prefers to `autojacvec`.
function sensealg(a::Adjoint, rtol, atol)
    checkpoints = a.checkpointing < 0 ? (;) : (; checkpointing = a.checkpointing == 1)
    a.name === :backsolve && return BacksolveAdjoint(; autojacvec = ZygoteVJP(), checkpoints...)
    a.name === :interpolating && return InterpolatingAdjoint(; autojacvec = ZygoteVJP(), checkpoints...)
    a.name === :quadrature && return QuadratureAdjoint(; autojacvec = ZygoteVJP(), abstol = atol, reltol = rtol)
    a.name === :gauss && return GaussAdjoint(; autojacvec = ZygoteVJP(), checkpoints...)
    throw(ArgumentError("unknown sensitivity $(a.name)"))
end

nothing!(out, u, p, t, i) = (fill!(out, 0); nothing)  # the cotangents come as `Jumps`

function PyNODE.adjoint_solve(fw::Dense{T}, g, a::Adjoint) where {T}
    o = fw.options
    reltol, abstol = T(a.rtol > 0 ? a.rtol : o.rtol), T(a.atol > 0 ? a.atol : o.atol)
    method = sensealg(a, reltol, abstol)
    span = last(fw.ts) - first(fw.ts)
    step(sign) = o.dt > 0 ? (; dt = copysign(o.dt, sign * span), adaptive = o.adaptive) : (;)
    keywords = (; abstol, reltol, maxiters = o.max_steps, step(-1)...)
    course = a.name === :backsolve ? Course(fw) : nothing
    backward = Watched(algorithm(o.solver; dense = a.name === :quadrature), Jumps(fw.ts, g), course, (;))
    if a.name === :quadrature
        du0, dp = quadrature(fw, backward, method, keywords)
    else
        again = Watched(fw.solution.alg, nothing, nothing, (; maxiters = o.max_steps, step(1)...))
        solution = a.checkpointing == 1 ? setproperties(fw.solution, (; alg = again)) : fw.solution
        du0, dp = adjoint_sensitivities(
            solution, backward; t = [last(fw.ts)], dgdu_discrete = nothing!, sensealg = method, keywords...,
        )
    end
    all(isfinite, dp) || throw(SolveFailure("the backward solve", non_finite, first(fw.ts)))
    return copy(vec(du0)), copy(vec(dp))
end

"SciMLSensitivity's quadrature adjoint, which does not say how accurate its quadrature is."
function quadrature(fw::Dense, backward, method, keywords)
    ts, (; abstol, reltol, maxiters) = fw.ts, keywords
    problem = ODEAdjointProblem(fw.solution, method, backward, [last(ts)], nothing!)
    adjoint = solve(problem, backward; save_everystep = true, save_start = true, keywords...)
    integrand = AdjointSensitivityIntegrand(fw.solution, adjoint, method)
    dp = zero(fw.θ)
    for i in 1:(length(ts) - 1)
        # 30 evaluations are those of a piece that is cut in two.
        part, estimate = try
            quadgk(integrand, ts[i], ts[i + 1]; atol = abstol, rtol = reltol, maxevals = 30maxiters)
        catch error
            error isa DomainError || rethrow()
            throw(SolveFailure("the backward solve", non_finite, ts[i + 1]))
        end
        estimate <= max(abstol, reltol * norm(part)) || throw(SolveFailure("the backward solve", max_steps, ts[i + 1]))
        dp .+= vec(part)
    end
    return last(adjoint.u), dp
end

# No workload: ReverseDiff's types, which compiled adjoints have in them, may crash Julia where it loads the image
# (JuliaLang/julia, issue 62047).

end
