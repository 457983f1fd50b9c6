# Solvers step by step, each step's stages recorded where the discrete adjoint is to follow.

"""
The accepted steps of a solve: their times, and their stages while these fit the memory that is allowed; beyond it, the
state at every so many steps, from which the steps in between are made again.
"""
mutable struct Steps{T,V<:AbstractVector{T}}
    const t::Vector{Time}                    # starts of the steps, and the end of the last
    const stages::Record{T,V}                # of all steps; a stage that ends one step and begins the next comes once
    const checkpoints::Vector{Pair{Int,V}}   # step => the state at its start
    const spare::Vector{V}                   # memory of states that are not kept any more
    every::Int                               # steps from one checkpoint to the next; 0: stages are kept
    const memory::Int                        # bytes
end

"A copy of a state, in memory that is free again if there is some: garbage would not count as kept, and yet be there."
keep!(steps::Steps, u) = isempty(steps.spare) ? copy(u) : copyto!(pop!(steps.spare), u)

"A solve with its steps, for the discrete adjoint."
struct Stepped{T,V<:AbstractVector{T},F<:TracedField{T,V}} <: Solved{T,V}
    field::F
    θ::V
    bound::Int   # the field's count of bindings when `θ` was bound
    ts::Vector{Time}
    steps::Steps{T,V}
    options::Options
    summary::Summary
    dense::Base.RefValue{Any}  # the same solve with SciML's solution, once it is asked for
    moves::Any                 # how the times move, of a derivative along them; see `follow!`
end

"The same solve, to be interpolated."
function dense(fw::Stepped{T}) where {T}
    if fw.dense[] === nothing
        u0 = fw.steps.every == 0 ? state_of(fw.steps.stages, 1) : last(fw.steps.checkpoints[1])
        o = fw.options
        options = Options(; o.solver, o.rtol, o.atol, o.dt, o.adaptive, o.max_steps, keep = :dense, o.control, o.kinks)
        values = similar(u0, T, length(u0), length(fw.ts))
        summary, found = forward!(values, fw.field, copy(u0), fw.ts, fw.θ, options)
        summary.outcome === fw.summary.outcome ||
            throw(SolveFailure("the solve made again for interpolation", summary.outcome, summary.reached))
        fw.dense[] = found
    end
    return fw.dense[]
end

dense(fw::Dense) = fw

function forward_steps!(values, field::TracedField{T,V}, u0, ts::Vector{Time}, θ, o::Options) where {T,V}
    tape = field.tape
    # The other half is for stages without residuals, or for more of small ones.
    o.keep === :stages && switch_on!(tape, o.wants_t, o.memory ÷ 2)
    try
        integrator = integrator_for(field, u0, ts, o)
        steps = Steps{T,V}(Time[], Record(tape), Pair{Int,V}[], V[], 0, o.memory)
        tab = tableau(o.solver, T)
        summary = Base.invokelatest(step_through!, values, field, integrator, steps, tab, ts, o)::Summary
        tape.on || return summary, nothing
        return summary, Stepped(field, θ, field.counts[3], ts, steps, o, summary, Ref{Any}(nothing), nothing)
    catch
        empty!(field.integrators)  # one of them stands within a step
        rethrow()
    finally
        tape.on = false
        recycle_taken!(tape)
    end
end

"""
An integrator, ready to start at `u0`. It is taken again for solves that differ in `u0`, `θ` and the times alone, if these
run in the same direction, which spares them its allocation.
"""
function integrator_for(field::TracedField, u0, ts, o::Options)
    o.solver in SYMPLECTIC && return Splitter(field, u0, ts, o)
    o.solver in NYSTROM && return Nystromer(field, u0, ts, o)
    # Other controllers, of the further methods or asked for, remember errors that `reinit!` leaves.
    reused = o.solver in EXPLICIT && o.control === nothing && (!o.adaptive || !lands_on_times(o))
    reused || return new_integrator(field, u0, ts, o)
    span = last(ts) - first(ts)
    key = (o.solver, span > 0, o.rtol, o.atol, o.dt, o.adaptive, o.max_steps)
    found = get(field.integrators, key, nothing)
    if found === nothing
        many = length(field.integrators) >= MAX_INTEGRATORS || bytes_held(field.integrators, Base.IdSet{Any}()) > MOST_INTEGRATED
        many && empty!(field.integrators)
        return field.integrators[key] = new_integrator(field, u0, ts, o)
    end
    dt = step_to_begin_with(field, found.alg, u0, ts, o)
    found.opts.dtmax = span
    reinit!(found, u0; t0 = first(ts), tf = last(ts), tstops = stops(ts, o))
    if dt !== nothing  # it would go on with the step that it had last
        found.dt = dt
        set_proposed_dt!(found, dt)
    end
    found.just_hit_tstop = found.next_step_tstop = found.force_stepfail = found.last_stepfail = false  # as of the last solve
    return ready!(found)
end

"How many integrators a field keeps, and how many bytes they may hold before one more is made."
const MAX_INTEGRATORS, MOST_INTEGRATED = 8, 2^28

# PythonCall adds methods for its own types to SciMLBase, with which everything is compiled anew that was compiled for functions of
# any type. So what follows is compiled for the field's own.
new_integrator(field::TracedField, u0, ts, o::Options) =
    Base.invokelatest(new_integrator, field, ode_function(field, o.solver), u0, ts, o)

function new_integrator(field::TracedField{T}, f::ODEFunction, u0, ts, o::Options) where {T}
    problem = ODEProblem{true}(f, u0, (first(ts), last(ts)), field.θ)
    # What interpolation needs is computed where there is interpolation.
    nothing_saved = (; save_everystep = false, save_start = false, save_end = false, dense = false, calck = !lands_on_times(o))
    return integrator_of(field, problem, algorithm(o.solver; threads = field.threads), ts, o; nothing_saved...)
end

function step_through!(
    values, field::TracedField{T}, integrator, steps::Steps{T}, tab::Scheme{T}, ts::Vector{Time}, o::Options
) where {T}
    tape = field.tape
    PROGRESS.integrator = integrator
    copy_shared!(view(values, :, 1), integrator.u, field.threads)
    start!(steps, tape, tab, first(ts))
    span, column, accepted, rejected = last(ts) - first(ts), 2, integrator.stats.naccept, integrator.stats.nreject
    while integrator.t != last(ts)
        before = integrator.t
        code = step!(integrator)
        outcome = if !(code === ReturnCode.Default || successful_retcode(code))
            outcome_of(code, integrator.uprev, integrator.u)
        else  # a solver of fixed steps would go on with what is not finite, and then nobody had the state before
            o.adaptive || allfinite(integrator.u, length(integrator.u), field.threads) ? success : non_finite
        end
        if outcome !== success
            fill!(view(values, :, column:length(ts)), T(NaN))
            copyto!(view(values, :, length(ts)), integrator.uprev)
            return Summary(outcome, before, integrator.stats.naccept - accepted, integrator.stats.nreject - rejected)
        end
        t = integrator.t
        tape.on && accept!(steps, tape, tab, t, integrator.u)
        while column <= length(ts) && !after(ts[column], t, span)
            to = view(values, :, column)
            ts[column] == t ? copy_shared!(to, integrator.u, field.threads) : integrator(to, ts[column])
            column += 1
        end
    end
    outcome = allfinite(integrator.u, length(integrator.u), field.threads) ? success : non_finite
    return Summary(outcome, last(ts), integrator.stats.naccept - accepted, integrator.stats.nreject - rejected)
end

"Whether the first `n` numbers are all finite."
allfinite(x, n, threads = 1) = all(isfinite, view(x, 1:n))
allfinite(x::Vector, n, threads = 1) = iszero(sum_shared(y -> y - y, threads, n, x))

"Whether time `τ` lies behind `t` in the direction of `h`."
after(τ, t, h) = h > 0 ? τ > t : τ < t

"Those of some times that lie between two others."
between(times, from, to) = filter(t -> after(t, from, to - from) && after(to, t, to - from), times)

"Begin: of the evaluations before the first step, the first stage is kept, if it is not made in the step."
function start!(steps::Steps, tape::Tape, tab::Scheme, t)
    tape.on || return
    push!(steps.t, t)
    at = tab.fsal ? findfirst(s -> s.t == t, tape.taken) : nothing  # a probe's time may be rounded to the same
    for (i, stage) in enumerate(tape.taken)
        i === at ? keep!(steps.stages, stage) : recycle!(tape, stage)
    end
    empty!(tape.taken)
    return
end

"Keep the stages of a step, or a checkpoint; the evaluations of rejected steps before it are given back."
function accept!(steps::Steps, tape::Tape, tab::Scheme, t, u)
    push!(steps.t, t)
    kept = steps.every == 0 ? length(tape.taken) - tab.calls : length(tape.taken)
    for (i, stage) in enumerate(tape.taken)
        i > kept ? keep!(steps.stages, stage) : recycle!(tape, stage)
    end
    empty!(tape.taken)
    if steps.every == 0
        tape.left < -(steps.memory ÷ 2) && thin!(steps, tape, tab)
    elseif (length(steps.t) - 1) % steps.every == 0
        push!(steps.checkpoints, length(steps.t) => keep!(steps, u))
        most = max(2, steps.memory ÷ 2 ÷ sizeof(u))
        while length(steps.checkpoints) > most
            steps.every *= 2
            stays((n, _)) = (n - 1) % steps.every == 0
            append!(steps.spare, (u for (n, u) in steps.checkpoints if !stays((n, u))))
            filter!(stays, steps.checkpoints)
        end
    end
    return
end

"Go over from stages to checkpoints."
function thin!(steps::Steps, tape::Tape, tab::Scheme)
    steps.every = 1
    for n in 1:(length(steps.t) - 1)
        push!(steps.checkpoints, n => copy(state_of(steps.stages, (n - 1) * tab.calls + 1)))
    end
    empty_record!(steps.stages)
    return
end
