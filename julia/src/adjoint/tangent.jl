# The derivative of a solve in one direction, on the steps that it took.
#
# It is the solve of the field together with its derivative (Python's `DirectionField`), whose state is the field's, its
# tangent, and, where the times move, a tensor of ṫ, how the time at which a stage is evaluated moves. The stages are
# those of the field, and Ẏ_i = u̇ + Σ_j a_ij (h k̇_j + ḣ k_j), ṫ_i = ṫ + c_i ḣ, with ḣ how the length of the step moves:
# what `combine!` makes of the whole state, and `move!` adds. The discrete adjoint of it (`pull_step!`) is the second
# derivative.

"How the times of a solve move: those of its steps' starts, of the end of the last, and those asked for."
struct Moves
    t::Vector{Time}
    ts::Vector{Time}
    n::Int  # how many numbers the field's state has; as many of its tangent follow
end

function Moves(fw::Stepped, dts::Vector{Time})
    t, ts, i = fw.steps.t, fw.ts, 1
    moved = map(t) do τ
        while lands_on_times(fw.options) && i < length(ts) && τ == ts[i + 1]
            i += 1
        end
        dts[i]
    end
    moved[end] = dts[end]
    return Moves(moved, dts, length(fw.field.u))
end

stretch(m::Moves, n::Int) = m.t[n + 1] - m.t[n]
states(m::Moves) = 1:(m.n)
tangents(m::Moves) = (m.n + 1):(2m.n)

"How the state within step `n`, at the part `c` of it, moves with the step: `y` has the rest of it, the first `m` of `a` are its weights."
function move!(y, moves::Moves, n::Int, c, a, k, m::Int)
    change = stretch(moves, n)
    view(y, (2moves.n + 1):length(y)) .= moves.t[n] + c * change
    iszero(change) || shift!(y, moves, change, a, k, m)
    return y
end

move!(y, ::Nothing, n, c, a, k, m) = y

function shift!(y, moves::Moves, change, a, k, m::Int)
    for j in 1:m
        α = eltype(y)(change * a[j])
        iszero(α) || (view(y, tangents(moves)) .+= α .* view(k[j], states(moves)))
    end
    return y
end

"The transpose of `shift!`: what cotangents `x` of the state are for the stages."
function spread_shift!(kbar, active, moves::Moves, change, a, x, m::Int)
    for j in 1:m
        α = eltype(x)(change * a[j])
        iszero(α) && continue
        active[j] || fill!(kbar[j], 0)
        active[j] = true
        view(kbar[j], states(moves)) .+= α .* view(x, tangents(moves))
    end
    return
end

spread_shift!(kbar, active, ::Nothing, n::Int, a, x, m::Int) = nothing
spread_shift!(kbar, active, moves::Moves, n::Int, a, x, m::Int) =
    spread_shift!(kbar, active, moves, stretch(moves, n), a, x, m)

"How the time `ts[i]`, the part `θ` of step `n`, moves beside the step."
drift(moves::Moves, n::Int, i::Int, θ) = moves.ts[i] - moves.t[n] - θ * stretch(moves, n)

"""
    follow!(values, field, forward, u0, moves, keep) -> Union{Stepped,Nothing}

Make the steps of `forward` with another field, whose `θ` is bound, from `u0`, and write its state at the times asked for
to the columns of `values`. `moves` is `nothing` where the times do not move.
"""
function follow!(values, field::TracedField{T,V}, fw::Stepped{T}, u0, moves, keep::Bool) where {T,V}
    tape, tab, o, ts = field.tape, tableau(fw.options.solver, T), fw.options, fw.ts
    steps = Steps{T,V}(Time[], Record(tape), Pair{Int,V}[], V[], 0, o.memory)
    keep && switch_on!(tape, o.wants_t, o.memory ÷ 2)
    try
        follow_steps!(values, field, fw, u0, moves, steps, tab)
    finally
        tape.on = false
        recycle_taken!(tape)
    end
    return keep ? Stepped(field, copy(field.θ), field.counts[3], ts, steps, o, fw.summary, Ref{Any}(nothing), moves) : nothing
end

function follow_steps!(values, field::TracedField{T}, fw::Stepped{T}, u, moves, steps, tab) where {T}
    tape, ts, t = field.tape, fw.ts, fw.steps.t
    lands, s, column = lands_on_times(fw.options), tab.s, 2
    Y, sum, k = similar(u), similar(u), [similar(u) for _ in 1:(tab.s)]
    moves === nothing || (view(u, (2moves.n + 1):length(u)) .= moves.t[1])
    copyto!(view(values, :, 1), u)
    tab.fsal && value!(k[s], field, u, t[1])
    start!(steps, tape, tab, t[1])
    for n in 1:(length(t) - 1)
        step = t[n + 1] - t[n]
        h = T(step)
        tab.fsal && copyto!(k[1], k[s])
        for j in (tab.fsal ? 2 : 1):s
            row = view(tab.A, j, :)
            move!(combine!(Y, u, h, row, k, j - 1, field.threads), moves, n, tab.c[j], row, k, j - 1)
            value!(k[j], field, Y, t[n] + tab.c[j] * step)
        end
        move!(combine!(Y, u, h, tab.b, k, s, field.threads), moves, n, one(T), tab.b, k, s)
        while column <= length(ts) && !after(ts[column], t[n + 1], last(ts) - first(ts))
            to = view(values, :, column)
            if ends_at(lands, ts, column, t[n + 1])
                copyto!(to, Y)
            else
                θ = T((ts[column] - t[n]) / step)
                w, dw = zeros(T, s), zeros(T, s)
                weights!(w, dw, tab, θ)
                combine!(sum, u, h, w, k, s, field.threads)
                if moves !== nothing
                    shift!(sum, moves, stretch(moves, n), w, k, s)
                    shift!(sum, moves, drift(moves, n, column, θ), dw, k, s)
                end
                copyto!(to, sum)
            end
            column += 1
        end
        u, Y = Y, u
        tape.on && accept!(steps, tape, tab, t[n + 1], u)
    end
    return
end

"Whether the time `ts[i]` is the end of a step because the step was made to end on it, and not by accident."
ends_at(lands::Bool, ts, i::Int, ends) = ts[i] == ends && (lands || i == length(ts))
