module PyNODESensitivityExt

using PyNODE: DRIFT, PyNODE, Adjoint, Dense, Integral, SolveFailure, add_integral!, after, algorithm, between, is_multistep,
    largest, max_steps, non_finite, off_trajectory, outcome_of, started, stops, success, tolerances_of
using SciMLBase: SciMLBase, AbstractODEAlgorithm, AbstractODEProblem, CallbackSet, DiscreteCallback, remake, solve, solve!
using SciMLSensitivity: AdjointSensitivityIntegrand, BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint,
    ODEAdjointProblem, QuadratureAdjoint, ZygoteVJP, adjoint_sensitivities, setproperties

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
    return Course(fw, T(DRIFT * largest(fw) + 100 * fw.options.atol), length(fw.ts) - 1)
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
`jumps` are those of a backward solve, which has stops besides, `nothing` where SciMLSensitivity makes a part of the forward
solve again; `course` is backsolve's, and `integral` Gauss's.
"""
struct Watched{A,J,C,I,S,K<:NamedTuple} <: AbstractODEAlgorithm
    algorithm::A
    jumps::J
    course::C
    integral::I
    stops::S
    keywords::K
end

for trait in (:isadaptive, :isautodifferentiable, :allows_arbitrary_number_types, :forwarddiffs_model, :forwarddiffs_model_time)
    @eval SciMLBase.$trait(w::Watched) = SciMLBase.$trait(w.algorithm)
end

function SciMLBase.__solve(problem::AbstractODEProblem, w::Watched; callback = nothing, tstops = (), keywords...)
    (; jumps, course, integral, stops) = w
    given = (; keywords..., w.keywords..., merge_callbacks = false)
    if jumps === nothing  # Gauss's method keeps such a part in the place of the whole, of the same type
        solution, _ = solved(problem, w; given..., callback, tstops)
        return setproperties(solution, (; alg = w))
    end
    look = course === nothing ? nothing : DiscreteCallback((u, t, _) -> follow!(course, u, t), Returns(nothing))
    problem = remake(problem; u0 = add!(copy(problem.u0), jumps, first(problem.tspan)))
    callback = integral === nothing ? callback : summing(callback, integral)
    tstops = [collect(tstops); stops]
    is_multistep(w.algorithm) && return in_pieces(problem, w, look, callback, tstops; given...)
    save = get(keywords, :save_everystep, true)
    jump = DiscreteCallback(
        (u, t, integrator) -> remain(jumps, t), integrator -> add!(integrator.u, jumps, integrator.t);
        save_positions = (save, save),
    )
    # The jump is the last, since Gauss's sum over the step that ends here is another callback, as is backsolve's reset
    # of the state, before which that is looked at.
    callback = CallbackSet(look, callback, jump)
    solution, _ = solved(problem, w; given..., callback, tstops = [tstops; jumps.ts])
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
    callback = CallbackSet(look, callback)
    while true
        to = jumps.next > 1 ? jumps.ts[jumps.next] : stop
        part = remake(problem; u0 = u, tspan = (from, to))
        solution, integrator = solved(part, w; given..., maxiters, callback, tstops = between(tstops, from, to))
        push!(jumps.pieces, solution)
        to == stop && return solution
        maxiters -= integrator.iter
        maxiters > 0 || throw(SolveFailure("the backward solve", max_steps, to))
        from, u = to, add!(copy(integrator.u), jumps, to)
    end
end

"Callbacks, of which SciMLSensitivity's sum over each step is one to the tolerances."
function summing(callbacks, integral)
    discrete = map(CallbackSet(callbacks).discrete_callbacks) do c
        hasproperty(c.affect!, :integrand_func) || return c
        (; integrand_func, integrand_values) = c.affect!
        λ = Ref{Any}(nothing)
        function affect!(integrator)
            λ[] === nothing && (λ[] = similar(integrator.u))
            add_integral!(integral, integrator.tprev, integrator.t) do out, t
                integrator(λ[], t)
                integrand_func(out, λ[], t, integrator)
            end
            copyto!(integrand_values.integrand, integral.total)
            return unmodified!(integrator)
        end
        DiscreteCallback(c.condition, affect!; c.initialize, c.finalize, save_positions = Tuple(c.save_positions))
    end
    return CallbackSet(discrete...)
end

const unmodified! = isdefined(SciMLBase, :derivative_discontinuity!) ?
    x -> SciMLBase.derivative_discontinuity!(x, false) : x -> SciMLBase.u_modified!(x, false)

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
    o, (; reltol, abstol) = fw.options, tolerances_of(fw, a)
    method = sensealg(a, reltol, abstol)
    span = last(fw.ts) - first(fw.ts)
    step(sign) = o.dt > 0 ? (; dt = copysign(o.dt, sign * span), adaptive = o.adaptive) : (;)
    keywords = (; abstol, reltol, maxiters = o.max_steps, step(-1)...)
    course = a.name === :backsolve ? Course(fw) : nothing
    integral = a.name === :gauss ? Integral(fw, a) : nothing
    backward = Watched(algorithm(o.solver; dense = a.name === :quadrature), Jumps(fw.ts, g), course, integral, stops(fw), (;))
    if a.name === :quadrature
        du0, dp = quadrature(fw, backward, method, keywords, Integral(fw, a))
    else
        again = Watched(fw.solution.alg, nothing, nothing, nothing, nothing, (; maxiters = o.max_steps, step(1)...))
        solution = a.checkpointing == 1 ? setproperties(fw.solution, (; alg = again)) : fw.solution
        du0, dp = adjoint_sensitivities(
            solution, backward; t = [last(fw.ts)], dgdu_discrete = nothing!, sensealg = method, keywords...,
        )
    end
    all(isfinite, dp) || throw(SolveFailure("the backward solve", non_finite, first(fw.ts)))
    return copy(vec(du0)), copy(vec(dp))
end

"SciMLSensitivity's quadrature adjoint, which does not say how accurate its quadrature is, with one between the stops."
function quadrature(fw::Dense, backward, method, keywords, integral)
    ts = fw.ts
    problem = ODEAdjointProblem(fw.solution, method, backward, [last(ts)], nothing!)
    adjoint = solve(problem, backward; save_everystep = true, save_start = true, keywords...)
    pieces, span = backward.jumps.pieces, last(ts) - first(ts)
    integrands = [AdjointSensitivityIntegrand(fw.solution, piece, method) for piece in pieces]
    ends = sort!(union(ts, backward.stops); rev = span < 0)
    for (from, to) in zip(ends, Iterators.drop(ends, 1))
        integrand = integrands[findfirst(piece -> !after(last(piece.t), from, span), pieces)]
        add_integral!(integrand, integral, from, to)
    end
    return last(adjoint.u), integral.total
end

# No workload: ReverseDiff's types, which compiled adjoints have in them, may crash Julia where it loads the image
# (JuliaLang/julia, issue 62047).

end
