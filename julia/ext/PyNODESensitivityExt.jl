module PyNODESensitivityExt

using LinearAlgebra: norm
using PyNODE: DRIFT, PyNODE, Adjoint, Dense, SolveFailure, after, algorithm, max_steps, multistep_order, non_finite,
    off_trajectory, outcome_of, started, success
using SciMLBase: SciMLBase, AbstractODEAlgorithm, AbstractODEProblem, CallbackSet, DiscreteCallback, remake, solve, solve!
using SciMLSensitivity: AdjointSensitivityIntegrand, BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint,
    ODEAdjointProblem, QuadratureAdjoint, ZygoteVJP, adjoint_sensitivities, quadgk, setproperties

"""
The cotangents of a solution's values, which the backward solve meets from the last time on to the second. A solver holds
times within a few roundings of one another for the same, so that a step may pass a time without a stop there: what was
passed is added with what was met. `pieces` are the solutions that the backward solve consists of.
"""
mutable struct Jumps{T,G<:AbstractMatrix}
    const ts::Vector{T}
    const g::G
    const pieces::Vector{Any}
    next::Int
end

Jumps(ts, g) = Jumps(ts, g, Any[], length(ts))

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

function SciMLBase.__solve(problem::AbstractODEProblem, w::Watched; callback = nothing, tstops = (), keywords...)
    (; jumps, course) = w
    given = (; keywords..., w.keywords..., merge_callbacks = false)
    if jumps === nothing  # Gauss's method keeps such a part in the place of the whole, of the same type
        solution, _ = solved(problem, w; given..., callback, tstops)
        return setproperties(solution, (; alg = w))
    end
    look = course === nothing ? nothing : DiscreteCallback((u, t, _) -> follow!(course, u, t), Returns(nothing))
    problem = remake(problem; u0 = add!(copy(problem.u0), jumps, first(problem.tspan)))
    multistep_order(w.algorithm) == 0 || return in_pieces(problem, w, look, callback, tstops; given...)
    save = get(keywords, :save_everystep, true)
    jump = DiscreteCallback(
        (u, t, integrator) -> remain(jumps, t), integrator -> add!(integrator.u, jumps, integrator.t);
        save_positions = (save, save),
    )
    # The jump is the last, since Gauss's sum over the step that ends here is another callback, as is backsolve's reset
    # of the state, before which that is looked at.
    callback = CallbackSet(look, callback, jump)
    solution, _ = solved(problem, w; given..., callback, tstops = [collect(tstops); jumps.ts])
    push!(jumps.pieces, solution)
    return solution
end

"The solution, and the integrator at its end."
function solved(problem, w::Watched; tstops, keywords...)
    integrator = started(problem, w.algorithm; keywords..., (isempty(tstops) ? (;) : (; tstops))...)
    solution = solve!(integrator)
    outcome = outcome_of(solution.retcode, last(solution.u), integrator.u)
    outcome === success || throw(SolveFailure("the backward solve", outcome, last(solution.t)))
    return solution, integrator
end

"The same from each jump to the next, by a method that remembers steps, from before a jump as well."
function in_pieces(problem, w::Watched, look, callback, tstops; maxiters, given...)
    (; jumps) = w
    (from, stop), u = problem.tspan, problem.u0
    callback = summing(CallbackSet(look, callback), multistep_order(w.algorithm))
    while true
        to = jumps.next > 1 ? jumps.ts[jumps.next] : stop
        within = filter(t -> after(t, from, to - from) && after(to, t, to - from), collect(tstops))
        part = remake(problem; u0 = u, tspan = (from, to))
        solution, integrator = solved(part, w; given..., maxiters, callback, tstops = within)
        push!(jumps.pieces, solution)
        to == stop && return solution
        maxiters -= integrator.iter
        maxiters > 0 || throw(SolveFailure("the backward solve", max_steps, to))
        from, u = to, add!(copy(integrator.u), jumps, to)
    end
end

"An algorithm of which only the order is asked."
struct OfOrder <: AbstractODEAlgorithm
    order::Int
end

SciMLBase.alg_order(a::OfOrder) = a.order

"An integrator as Gauss's sum over a step takes it: it asks the algorithm for its order, to know how many points it needs."
struct Ordered{I}
    integrator::I
    order::Int
end

Base.getproperty(x::Ordered, name::Symbol) =
    name === :alg ? OfOrder(getfield(x, :order)) : getproperty(getfield(x, :integrator), name)
(x::Ordered)(arguments...) = getfield(x, :integrator)(arguments...)
SciMLBase.get_tmp_cache(x::Ordered) = SciMLBase.get_tmp_cache(getfield(x, :integrator))
SciMLBase.u_modified!(x::Ordered, modified::Bool) = SciMLBase.u_modified!(getfield(x, :integrator), modified)
@static if isdefined(SciMLBase, :derivative_discontinuity!)
    SciMLBase.derivative_discontinuity!(x::Ordered, modified::Bool) =
        SciMLBase.derivative_discontinuity!(getfield(x, :integrator), modified)
end

"Callbacks, of which those that sum something up over each step do it for a method of this order."
function summing(callbacks::CallbackSet, order)
    discrete = map(callbacks.discrete_callbacks) do c
        hasproperty(c.affect!, :integrand_func) || return c
        affect! = x -> c.affect!(Ordered(x, order))
        DiscreteCallback(c.condition, affect!; c.initialize, c.finalize, save_positions = Tuple(c.save_positions))
    end
    return CallbackSet(callbacks.continuous_callbacks..., discrete...)
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
    pieces, span = backward.jumps.pieces, last(ts) - first(ts)
    integrands = [AdjointSensitivityIntegrand(fw.solution, piece, method) for piece in pieces]
    dp = zero(fw.θ)
    for i in 1:(length(ts) - 1)
        integrand = integrands[findfirst(piece -> !after(last(piece.t), ts[i], span), pieces)]
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
