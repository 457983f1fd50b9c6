# Forward solves.

"What a solve is asked to do."
Base.@kwdef struct Options
    solver::String
    rtol::Float64 = 1e-3
    atol::Float64 = 1e-6
    dt::Float64 = 0.0           # 0: automatic
    adaptive::Bool = true
    max_steps::Int = 10_000
    keep::Symbol = :ends        # of the steps: nothing (:ends, :saved), :stages (discrete adjoint), their :times, or :dense
    memory::Int = 2^30          # bytes that the steps kept for the discrete adjoint may take
    wants_t::Bool = true        # whether it is to give the times' cotangents
    control::Union{Nothing,StepControl} = nothing
    mass::Union{Nothing,Mass} = nothing
    split::Union{Nothing,Split} = nothing
    kinks::Vector{Time} = Time[]  # times that an adaptive solver steps to and goes on from, since the field has kinks there
end

"Whether nothing but the states at the times asked for is stored."
only_saved(o::Options) = o.keep === :ends || o.keep === :saved

"How a solve ended, in the order that Python's `Retcode` is mapped from."
@enum Outcome success max_steps step_underflow non_finite failure off_trajectory

"How a solve went: its outcome, the time that was reached, accepted and rejected steps."
struct Summary
    outcome::Outcome
    reached::Time
    accepted::Int
    rejected::Int
end

"A solve that a gradient or an interpolation takes, besides the one that was asked for, has failed."
struct SolveFailure <: Exception
    what::String
    outcome::Outcome
    reached::Float64
end

Base.showerror(io::IO, e::SolveFailure) = print(io, "$(e.what) stopped at t = $(e.reached): $(e.outcome)")

"A solve that a pullback or an interpolation may follow."
abstract type Solved{T,V} end

"A solve that is kept as a solution of SciML's."
struct Dense{T,V<:AbstractVector{T},S,F<:TracedField{T,V}} <: Solved{T,V}
    field::F
    θ::V
    ts::Vector{Time}
    solution::S
    options::Options
    summary::Summary
end

"""
    forward!(values, field, u0, ts, θ, options) -> Summary, Union{Solved,Nothing}

Solve from `u0` at `ts[1]` and write the state at every entry of `ts` to the columns of `values`. Of a solve that fails,
times that were not reached are NaN, but for the last column: it has the state at the time that was reached.

Fixed-step solvers step by `dt` from each entry of `ts` and land on the next one. Adaptive explicit solvers interpolate
at the entries of `ts`, except those whose interpolant needs further stages, which land on them where the discrete
adjoint is to follow.
"""
function forward!(values, field::TracedField, u0, ts::Vector{Time}, θ, o::Options)
    bind!(field, θ)
    return integrate!(values, field, u0, ts, o.keep === :ends ? field.θ : copy(field.θ), o)
end

"Solve with the `θ` that is bound; what is kept of the solve refers to `θ`."
function integrate!(values, field::TracedField, u0, ts::Vector{Time}, θ, o::Options)
    if !(o.keep in (:ends, :stages)) || isopaque(o.solver)
        f = solved_function(field, o)
        alg = algorithm(o.solver; dense = o.keep === :dense, split = o.split !== nothing, field.threads)
        return Base.invokelatest(forward_whole!, values, field, f, u0, ts, θ, o, alg)
    end
    (o.solver in EXPLICIT || isown(o.solver)) && return forward_steps!(values, field, u0, ts, θ, o)
    algorithm(o.solver)  # whose package may have to be loaded
    return Base.invokelatest(forward_steps!, values, field, u0, ts, θ, o)
end

"A field as what the options say is solved."
function solved_function(field::TracedField, o::Options)
    o.mass === nothing || return mass_function(field, o.mass)
    return o.split === nothing ? ode_function(field, o.solver) : split_function(o.split)
end

function forward_whole!(values, field::TracedField{T}, f, u0, ts::Vector{Time}, θ, o::Options, alg) where {T}
    span, split = (first(ts), last(ts)), o.split
    problem = split === nothing ? ODEProblem{true}(f, u0, span, field.θ) : SplitODEProblem{true}(f, u0, span, split)
    ends, dense = only_saved(o), o.keep === :dense
    # With a mass matrix Python has seen to a consistent initial state.
    start = o.mass === nothing ? (;) : (; initializealg = NoInit())
    saved = (; saveat = ends ? ts : Time[], save_everystep = !ends, dense, start...)
    integrator = integrator_of(field, problem, alg, ts, o; saved...)
    PROGRESS.integrator = integrator
    solution = solve!(integrator)
    # After a failure the solution may end at the last time that was to be saved, the integrator at the one it reached.
    done = successful_retcode(solution.retcode)
    outcome = outcome_of(solution.retcode, done ? last(solution.u) : integrator.uprev, integrator.u)
    split === nothing || begins_again(split, solution.stats) || (outcome = failure)
    reached = done ? last(solution.t) : integrator.t
    summary = Summary(outcome, reached, solution.stats.naccept, solution.stats.nreject)
    if outcome === non_finite && !o.adaptive && !isopaque(o.solver)
        # Equal steps went on with what is not finite: the same ones once more, to the last state that is.
        again = Options(; o.solver, o.dt, o.adaptive, o.max_steps, keep = :ends)
        summary, _ = integrate!(values, field, u0, ts, θ, again)
    else
        fill_values!(values, solution, ts, summary.reached, o)
        outcome === success || copyto!(view(values, :, length(ts)), integrator.uprev)
    end
    o.keep === :ends && return summary, nothing
    split === nothing || (solution = of_sum(solution, field, field.θ, o.solver))
    return summary, Dense(field, θ, ts, solution, o, summary)
end

"""
How a solver is to step, for states of type `T`; the types are the same whatever the options, so that it is compiled once.

The PI controllers of the explicit methods start from a remembered error of 1e-4, and with their small exponents a step
hardly grows where rounding bounds the estimate from below, as in Float32: short smooth solves took twice the steps.
"""
function keywords(field::TracedField{T}, alg, u0, ts::Vector{Time}, o::Options) where {T}
    return (;
        reltol = T(o.rtol),
        abstol = T(o.atol),
        dt = step_to_begin_with(field, alg, u0, ts, o),
        adaptive = o.adaptive,
        maxiters = o.max_steps,
        tstops = stops(ts, o),
        controller = o.adaptive && o.solver in INTERPOLATED ? IController() : nothing,
    )
end

"""
The first step, or `nothing` where it is left to OrdinaryDiffEq. A solver of fixed steps is led along its grid: each step, too long, is cut.
"""
function step_to_begin_with(field, alg, u0, ts::Vector{Time}, o::Options)
    o.adaptive && o.dt == 0 && return first_step(field, alg, u0, ts, o)
    return copysign(o.adaptive ? o.dt : 2o.dt, last(ts) - first(ts))
end

"The times to stop at."
function stops(ts::Vector{Time}, o::Options)
    o.adaptive || return Stops(fixed_grid(ts, o.dt, o.max_steps))
    kinks = isempty(o.kinks) ? o.kinks : between(o.kinks, first(ts), last(ts))
    return Stops(!lands_on_times(o) ? kinks : isempty(kinks) ? ts : [ts; kinks])
end

"An integrator before its first step."
function integrator_of(field::TracedField{T}, problem, alg, ts::Vector{Time}, o::Options; saved...) where {T}
    asked = (; keywords(field, alg, problem.u0, ts, o)..., (o.solver in EXPLICIT ? whole_state(field) : (;))...)
    o.control === nothing && return started(problem, alg; asked..., saved...)
    return controlled(further -> started(problem, alg; asked..., further..., saved...), T, alg, o.control)
end

"Times to stop at. There may be millions, which OrdinaryDiffEq sorts first: Python's signal handlers run meanwhile."
struct Stops <: AbstractVector{Time}
    times::Vector{Time}
    watch::Watch
end

Stops(times) = Stops(times, Watch())
Base.size(s::Stops) = size(s.times)
Base.getindex(s::Stops, i::Int) = (count!(s.watch); s.times[i])

"""
The times at which a fixed-step solver stands: from each entry of `ts` in steps of `dt`, the last of which is cut to end on
the next entry. No more than `limit + 1` of them.
"""
function fixed_grid(ts::Vector{Time}, dt::Time, limit::Int)
    grid = Time[]
    for i in 1:(length(ts) - 1)
        a, b = ts[i], ts[i + 1]
        n = min(max(1.0, ceil(abs(b - a) / dt - SLACK)), limit - length(grid) + 1)
        append!(grid, (a + copysign(k * dt, b - a) for k in 1:(n - 1)))
        push!(grid, b)
    end
    return grid
end

"Whether the solver steps exactly to every entry of `ts`."
lands_on_times(o::Options) =
    !o.adaptive || o.solver in NYSTROM ||
    (o.keep === :stages && !(o.solver in INTERPOLATED))

"What a return code says of a solve that came to `u` and tried to go on to `tried`."
function outcome_of(code, u, tried = u)
    all(isfinite, u) || return non_finite
    successful_retcode(code) && return success
    code === ReturnCode.MaxIters && return max_steps
    code === ReturnCode.DtLessThanMin && return step_underflow
    # OrdinaryDiffEq's code for what is not finite, and for steps that the rounding of times swallows.
    code === ReturnCode.Unstable && return all(isfinite, tried) ? step_underflow : non_finite
    return code === ReturnCode.DtNaN ? non_finite : failure
end

function fill_values!(values, solution, ts::Vector{Time}, reached, o::Options)
    forwards = last(ts) >= first(ts)
    saved = solution.t
    at = 1
    for (i, t) in enumerate(ts)
        column = view(values, :, i)
        if forwards ? t > reached : t < reached
            fill!(column, NaN)
            continue
        end
        while at < length(saved) && (forwards ? saved[at] < t : saved[at] > t)
            at += 1
        end
        if saved[at] == t
            copyto!(column, solution.u[at])
        elseif o.keep !== :dense
            fill!(column, NaN)
        else
            solution(column, t)
        end
    end
    return values
end
