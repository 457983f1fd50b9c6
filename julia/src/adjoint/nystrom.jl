# The discrete adjoint of Nyström methods, stage by stage.
#
# With f̄_i the cotangent of f_i, (q̄_i, v̄_i) = (∂f/∂q, ∂f/∂v)ᵀ f̄_i is that of (Q_i, V_i), and
# f̄_i = h² b̄_i q̄⁺ + h b_i v̄⁺ + Σ_j (h² ā_ji q̄_j + h a_ji v̄_j). Step sizes are held.

const NystromPull{T} = Pull{T,V,F,G,Nystrom{T}} where {V<:AbstractVector{T},F<:TracedField{T,V},G<:AbstractMatrix{T}}

at_once(tab::Nystrom) = tab.s

function pull_step!(p::NystromPull{T}, steps::Steps, n::Int, stages::Vector{<:Stage}, offset::Int) where {T}
    tab, ts, λ, ubar, field, kbar = p.tab, p.ts, p.λ, p.ubar, p.field, p.kbar
    t, ends = steps.t[n], steps.t[n + 1]
    h = T(ends - t)
    dt, dh = zero(Time), zero(Time)
    while p.save > 1 && after(ts[p.save], t, h)  # every step ends on a time asked for, or before it
        λ .+= view(p.g, :, p.save)
        p.save -= 1
    end
    v = half(stages[offset + 1].u, true)
    f(j) = half(stages[offset + j].k, true)
    foreach(x -> fill!(x, zero(T)), kbar)
    copyto!(ubar, λ)
    half(ubar, true) .+= h .* half(λ, false)
    spread_stages!(kbar, tab.p, tab.b, λ, h)
    p.wants_t && (dh += change_of(tab.p, tab.b, one(T), λ, v, f, h))
    for j in (tab.s):-1:1
        product!(p, kbar[j], stages[offset + j])
        ubar .+= field.dz
        half(ubar, true) .+= (tab.c[j] * h) .* half(field.dz, false)
        P, A = view(tab.P, j, 1:(j - 1)), view(tab.A, j, 1:(j - 1))
        spread_stages!(kbar, P, A, field.dz, h)
        if p.wants_t
            change = slope(field)
            dt += change
            dh += tab.c[j] * change + change_of(P, A, tab.c[j], field.dz, v, f, h)
        end
    end
    copyto!(λ, ubar)
    p.wants_t && move_times!(p, n, t, ends, dt, dh)
    return
end

"The transpose of `add_stages!`, added to the cotangents of the stages."
function spread_stages!(kbar, p, b, y, h)
    for j in eachindex(p)
        x = half(kbar[j], true)
        iszero(p[j]) || (x .+= (h * h * p[j]) .* half(y, false))
        iszero(b[j]) || (x .+= (h * b[j]) .* half(y, true))
    end
    return
end

"How `q + c h v + h² Σ p_j f_j` and `v + h Σ b_j f_j` change with `h`, in the direction of a cotangent `y`."
function change_of(p, b, c, y, v, f, h)
    found = c * dot(half(y, false), v)
    for j in eachindex(p)
        iszero(p[j]) || (found += 2h * p[j] * dot(half(y, false), f(j)))
        iszero(b[j]) || (found += b[j] * dot(half(y, true), f(j)))
    end
    return found
end

function remake!(tape::Tape, p::NystromPull{T}, steps::Steps, a::Int, b::Int, u, Y, stages) where {T}
    new = p.ubar
    for n in a:b
        nystrom_step!(new, u, p.kbar, Y, p.field, p.tab, steps.t[n], steps.t[n + 1])
        copyto!(u, new)
        put_taken!(stages, tape)
    end
    push!(steps.spare, Y)
    return u
end
