# The discrete adjoint: the exact transpose of the accepted steps of an explicit Runge–Kutta method.
#
# A step is Y_i = u + h Σ_j a_ij k_j, k_i = f(t + c_i h, Y_i), u⁺ = u + h Σ_i b_i k_i. Backwards, stage by stage:
# k̄_i = h b_i λ + Σ_j h a_ji Ȳ_j and Ȳ_i = (∂f/∂u)ᵀ k̄_i, with λ the cotangent of u⁺. Step sizes are held.

"The cotangents of a solve's inputs."
struct Cotangents{T,V<:AbstractVector{T}}
    u0::V
    θ::V          # conditioning tensors, then parameters
    ts::Vector{Time}
end

"What goes backwards through the steps of a solve."
mutable struct Pull{T,V<:AbstractVector{T},F<:TracedField{T,V},G<:AbstractMatrix{T},S<:Scheme{T}}
    const field::F
    const tab::S
    ts::Vector{Time}
    const lands::Bool
    const wants_t::Bool
    g::G                        # cotangents of the values, `(state, time)`
    const λ::V                  # cotangent of the state at the end of the step
    const k::Vector{V}          # the values of the step's stages, where they are known
    const kbar::Vector{V}       # their cotangents, and after their products those of the states at which they are evaluated
    const active::Vector{Bool}  # whether these are not zero
    const sources::Vector{V}    # what stages' cotangents are sums of: λ, and `kbar`
    const weights::Vector{T}    # of these
    const ubar::V               # cotangent of the state at the start of the step, by values within it
    const sum::V
    const w::Vector{T}
    const dw::Vector{T}
    const ddw::Vector{T}
    const moves::Union{Nothing,Moves}
    const out::Cotangents{T,V}
    pending::Bool               # whether the first stage's cotangent waits for its product, which the step before makes
    save::Int                   # entries of `ts` that are still to come
    stop::Int                   # the entry that the last step was cut to land on
    shift::Time                 # cotangent of a common shift of the steps so far
end

bytes_held(p::Pull, seen) = bytes_held((p.λ, p.kbar, p.ubar, p.sum, p.out.θ), seen)

"How many stages have cotangents at a time."
at_once(tab::Tableau) = tab.s
at_once(::Splitting) = 1

function Pull(fw::Stepped{T,V}, g, wants_t::Bool) where {T,V}
    tab, ts, field = tableau(fw.options.solver, T), fw.ts, fw.field
    make() = fill!(similar(field.u), zero(T))
    λ = make()
    out = Cotangents{T,V}(λ, fill!(similar(field.dθ), zero(T)), zeros(length(ts)))
    kbar = [make() for _ in 1:at_once(tab)]
    return Pull(
        field, tab, ts, lands_on_times(fw.options), wants_t, g, λ, [λ for _ in 1:(tab.s)], kbar, fill(false, tab.s), [λ, kbar...],
        zeros(T, tab.s + 1), make(), make(), zeros(T, tab.s), zeros(T, tab.s), zeros(T, tab.s), fw.moves, out, false, length(ts),
        length(ts), zero(Time),
    )
end

"""
    discrete_pullback(forward, g; wants_t = true) -> Cotangents

The exact gradient of the numerical solution. `g` is `(state, time)`: the cotangents of `forward`'s values. The next
gradient of a solve of the same field overwrites the result.
"""
function discrete_pullback(fw::Stepped, g; wants_t::Bool = true)
    fw.bound == fw.field.counts[3] || bind!(fw.field, fw.θ)
    return pull_back(fw, g; wants_t)
end

"The same for the `θ` that is bound."
pull_back(fw::Stepped, g; wants_t::Bool = true) = pull_back!(pull_for(fw, g, wants_t), fw)

"What goes backwards, with the memory of the last one of the field's, if that was asked for the same."
function pull_for(fw::Stepped, g, wants_t::Bool)
    fw.moves === nothing || return Pull(fw, g, wants_t)
    pulls, key = fw.field.pulls, (typeof(g), fw.options.solver, lands_on_times(fw.options), wants_t)
    if !haskey(pulls, key)
        empty!(pulls)
        return pulls[key] = Pull(fw, g, wants_t)
    end
    p = pulls[key]
    fill!(p.out.θ, 0)
    return turn!(p, fw, g)
end

"Turn to another solve by the same method and options; the cotangent of `θ` will be added to what there is."
function turn!(p::Pull, fw::Stepped, g)
    p.ts, p.g, p.pending, p.shift = fw.ts, g, false, zero(Time)
    p.save = p.stop = length(fw.ts)
    fill!(p.λ, 0)
    fill!(resize!(p.out.ts, length(fw.ts)), 0)
    return p
end

function pull_back!(p::Pull, fw::Stepped)
    p.wants_t && !fw.options.wants_t && throw(ArgumentError("cotangents of the times are wanted, for which nothing was kept"))
    steps = fw.steps
    last = length(steps.t) - 1
    if steps.every == 0
        for n in last:-1:1
            pull_step!(p, steps, n, stages_behind(steps.stages, (n - 1) * p.tab.calls, p.tab.s)...)
        end
    else
        bytes = p.tab.calls * max((1 + p.wants_t) * sizeof(p.λ), p.field.tape.size)
        for (n, u) in Iterators.reverse(steps.checkpoints)
            pull_steps!(p, steps, n, last, u, max(1, steps.memory ÷ 2 ÷ bytes))
            last = n - 1
        end
    end
    p.λ .+= view(p.g, :, 1)
    return p.out
end

"Pull back the steps `a:b`, made again from the state `u` at the start of the first, at most `room` of them at a time."
function pull_steps!(p::Pull, steps::Steps, a::Int, b::Int, u, room::Int)
    a > b && return
    if b - a + 1 > room
        middle = (a + b + 1) ÷ 2
        between = remake(p, steps, a, middle - 1, u, nothing)
        pull_steps!(p, steps, middle, b, between, room)
        push!(steps.spare, between)
        pull_steps!(p, steps, a, middle - 1, u, room)
        return
    end
    stages = Record(p.field.tape)
    push!(steps.spare, remake(p, steps, a, b, u, stages))
    for n in b:-1:a
        pull_step!(p, steps, n, stages_behind(stages, (n - a) * p.tab.calls, p.tab.s)...)
    end
    empty_record!(stages)
    return
end

"""
Make the steps `a:b` again, and keep the stages in a record, if one is given. Returns the state after the last, whose
memory goes to `steps.spare` afterwards.
"""
function remake(p::Pull, steps::Steps, a::Int, b::Int, u, stages)
    tape = p.field.tape
    switch_on!(tape, p.wants_t, 0)
    try
        return remake!(tape, p, steps, a, b, keep!(steps, u), keep!(steps, u), stages)
    finally
        tape.on = false
        empty!(tape.taken)
    end
end

function remake!(tape::Tape, p::Pull{T}, steps::Steps, a::Int, b::Int, u, Y, stages) where {T}
    field, tab, threads = p.field, p.tab, p.field.threads
    k = copy(p.kbar)  # these are free between the steps, but for a first one that waits for its product
    tab.fsal && (k[1] = p.ubar; value!(k[tab.s], field, u, steps.t[a]))
    for n in a:b
        t, step = steps.t[n], steps.t[n + 1] - steps.t[n]
        h = T(step)
        tab.fsal && ((k[1], k[tab.s]) = (k[tab.s], k[1]))
        for j in (tab.fsal ? 2 : 1):(tab.s)
            row = view(tab.A, j, :)
            move!(combine!(Y, u, h, row, k, j - 1, threads), p.moves, n, tab.c[j], row, k, j - 1)
            value!(k[j], field, Y, t + tab.c[j] * step)
        end
        move!(combine!(Y, u, h, tab.b, k, tab.s, threads), p.moves, n, one(h), tab.b, k, tab.s)
        u, Y = Y, u
        put_taken!(stages, tape)
    end
    put_taken!(stages, tape)
    push!(steps.spare, Y)
    return u
end

"Keep the stages that were taken in a record, if there is one."
put_taken!(::Nothing, tape::Tape) = recycle_taken!(tape)
put_taken!(stages::Record, ::Tape) = keep_taken!(stages)

"Pull back step `n`, whose stages follow `stages[offset]`."
function pull_step!(p::Pull{T}, steps::Steps, n::Int, stages::Vector{<:Stage}, offset::Int) where {T}
    tab, ts, g, λ, ubar, field, out = p.tab, p.ts, p.g, p.λ, p.ubar, p.field, p.out
    s, threads = tab.s, field.threads
    t, ends = steps.t[n], steps.t[n + 1]
    h = T(ends - t)
    dt, dh = zero(Time), zero(Time)
    foreach(j -> p.k[j] = stages[offset + j].k, 1:s)
    fill!(p.active, false)
    # The first stage of the later step is the last one of this step.
    if p.pending
        p.kbar[1], p.kbar[s] = p.kbar[s], p.kbar[1]
        p.sources[2], p.sources[s + 1] = p.kbar[1], p.kbar[s]
        p.active[s] = true
    end
    saved = false
    while p.save > 1 && after(ts[p.save], t, h)
        i = p.save
        p.save -= 1
        gi = view(g, :, i)
        if ends_at(p.lands, ts, i, ends)
            add_shared!(λ, gi, threads)
            continue
        end
        θ = T((ts[i] - t) / (ends - t))
        weights!(p.w, p.dw, tab, θ)
        saved ? add_shared!(ubar, gi, threads) : copyto!(ubar, gi)
        saved = true
        spread!(p.kbar, p.active, h, p.w, gi, s, threads)
        p.moves === nothing || spread_moved_time!(p, n, i, θ, gi)
        if p.wants_t
            slope = dot(gi, combine!(p.sum, nothing, one(T), p.dw, p.k, s, threads))
            p.moves === nothing || (slope += bend(p, n, i, θ, gi) / h)
            out.ts[i] += slope
            dt -= slope
            dh += dot(gi, combine!(p.sum, nothing, one(T), p.w, p.k, s, threads)) - θ * slope
        end
    end
    last_stage = s
    if tab.fsal
        if p.active[s]
            product!(p, p.kbar[s], stages[offset + s])
            add_shared!(λ, field.dz, threads)
            p.wants_t && (change = slope(field); dt += change; dh += change)
        end
        last_stage -= 1
    end
    spread_shift!(p.kbar, p.active, p.moves, n, tab.b, λ, last_stage)
    p.wants_t && (dh += dot(λ, combine!(p.sum, nothing, one(T), tab.b, p.k, last_stage, threads)))
    p.pending = false
    for j in last_stage:-1:1
        weigh_sources!(p, j, last_stage) || p.active[j] || continue
        if j == 1 && tab.fsal && n > 1
            gather!(p.kbar[1], p, 1, h)
            p.pending = true
            break
        end
        product!(p, gather!(field.v, p, j, h), stages[offset + j])
        copy_shared!(p.kbar[j], field.dz, threads)
        p.active[j] = true
        row = view(tab.A, j, :)
        spread_shift!(p.kbar, p.active, p.moves, n, row, field.dz, j - 1)
        p.wants_t || continue
        change = slope(field)
        if j > 1
            dt += change
            dh += tab.c[j] * change + dot(field.dz, combine!(p.sum, nothing, one(T), row, p.k, j - 1, threads))
        else
            tab.fsal ? (out.ts[1] += change) : (dt += change)
        end
    end
    for j in 1:s
        p.weights[j] = p.active[j] && j <= last_stage && !(j == 1 && p.pending)
    end
    combine!(λ, λ, one(T), p.weights, p.kbar, s, threads)
    saved && add_shared!(λ, ubar, threads)
    p.wants_t && move_times!(p, n, t, ends, dt, dh)
    return
end

"""
The weights of the cotangent of the step's end, and of those of its later states, in the cotangent of stage `j`; whether any
is not zero.
"""
function weigh_sources!(p::Pull{T}, j::Int, last_stage::Int) where {T}
    p.weights[1] = p.tab.b[j]
    for i in 1:(p.tab.s)
        p.weights[i + 1] = j < i <= last_stage && p.active[i] ? p.tab.A[i, j] : zero(T)
    end
    return any(!iszero, p.weights)
end

"The cotangent of stage `j`: what it has by now, and the sum that has been weighed."
function gather!(to, p::Pull, j::Int, h)
    from = p.active[j] ? p.kbar[j] : nothing
    return combine!(to, from, h, p.weights, p.sources, p.tab.s + 1, p.field.threads)
end

"The cotangents of the stages of step `n` that come by the move of the time `ts[i]` within it, whose state's they are."
function spread_moved_time!(p::Pull, n::Int, i::Int, θ, gi)
    spread_shift!(p.kbar, p.active, p.moves, n, p.w, gi, p.tab.s)
    spread_shift!(p.kbar, p.active, p.moves, drift(p.moves, n, i, θ), p.dw, gi, p.tab.s)
    return
end

"How the move of the time `ts[i]` changes with the time, in the direction of a cotangent of its state."
function bend(p::Pull{T}, n::Int, i::Int, θ, gi) where {T}
    curvature!(p.ddw, p.tab, θ)
    combine!(p.sum, nothing, one(T), p.ddw, p.k, p.tab.s, p.field.threads)
    return T(drift(p.moves, n, i, θ)) * dot(view(gi, tangents(p.moves)), view(p.sum, states(p.moves)))
end

"Add the cotangents of a step's start and length to those of the times that these depend on."
function move_times!(p::Pull, n, t, ends, dt, dh)
    if ends == p.ts[p.stop]  # this step was cut to land on ts[stop]
        p.out.ts[p.stop] += dh
        p.shift -= dh
    end
    p.shift += dt
    start = p.lands ? p.stop - 1 : 1
    if start >= 1 && t == p.ts[start]
        p.out.ts[start] += p.shift
        p.shift, p.stop = zero(Time), start
    end
    return
end

"The product of a stage's cotangent with the field's Jacobians; that of `θ` is added up."
function product!(p::Pull, cotangent, stage::Stage)
    vjp!(p.field, cotangent, stage)
    add_shared!(p.out.θ, p.field.dθ, p.field.threads)
    return
end

# The sums over stages go through the state, or a thread's part of it, in pieces.

"`y = u + h Σ_j a_j k_j` over the first `m` stages, on threads."
function combine!(y::Vector, u, h, a, k, m, threads)
    share(threads, length(y), 1 + m) do part
        for piece in pieces(part)
            @simd for i in piece
                @inbounds y[i] = u === nothing ? zero(h) : u[i]
            end
            for j in 1:m
                α, kj = h * a[j], k[j]
                iszero(α) && continue
                @simd for i in piece
                    @inbounds y[i] = muladd(α, kj[i], y[i])
                end
            end
        end
    end
    return y
end

function combine!(y, u, h, a, k, m, threads)
    u === nothing ? fill!(y, 0) : u === y || copyto!(y, u)
    for j in 1:m
        iszero(a[j]) || (α = h * a[j]; y .+= α .* k[j])
    end
    return y
end

"`k̄_j += h a_j x` for the first `m` stages, on threads."
function spread!(kbar::Vector{<:Vector}, active, h, a, x, m, threads)
    share(threads, length(x), 1 + 2m) do part
        for piece in pieces(part), j in 1:m
            α, kj = h * a[j], kbar[j]
            iszero(α) && continue
            if active[j]
                @simd for i in piece
                    @inbounds kj[i] = muladd(α, x[i], kj[i])
                end
            else
                @simd for i in piece
                    @inbounds kj[i] = α * x[i]
                end
            end
        end
    end
    return activate!(active, h, a, m)
end

function spread!(kbar, active, h, a, x, m, threads)
    for j in 1:m
        α = h * a[j]
        iszero(α) || (active[j] ? (kbar[j] .+= α .* x) : (kbar[j] .= α .* x))
    end
    return activate!(active, h, a, m)
end

function activate!(active, h, a, m)
    for j in 1:m
        iszero(h * a[j]) || (active[j] = true)
    end
    return
end
