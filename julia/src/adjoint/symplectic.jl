# The discrete adjoint of symplectic methods, substep by substep.
#
# A kick is p⁺ = p + h w f(t + c h, q). Backwards, q̄ += (∂f/∂q)ᵀ h w p̄, and p̄ stays; a drift likewise. The derivative that
# ends one step and begins the next gets one product, of the sum of both cotangents.

const SymplecticPull{T} =
    Pull{T,V,F,G,Splitting{T}} where {V<:AbstractVector{T},F<:TracedField{T,V},G<:AbstractMatrix{T}}

function pull_step!(p::SymplecticPull{T}, steps::Steps, n::Int, stages::Vector{<:Stage}, offset::Int) where {T}
    tab, ts, λ, field, kbar = p.tab, p.ts, p.λ, p.field, p.kbar[1]
    t, ends = steps.t[n], steps.t[n + 1]
    h = T(ends - t)
    dt, dh = zero(Time), zero(Time)
    while p.save > 1 && after(ts[p.save], t, h)  # every step ends on a time asked for, or before it
        λ .+= view(p.g, :, p.save)
        p.save -= 1
    end
    for j in (tab.s):-1:1
        kicked, stage = tab.kicks[j], stages[offset + j]
        moved, moves = half(λ, kicked), half(kbar, kicked)
        p.pending || fill!(kbar, zero(T))
        p.pending = false
        moves .+= (h * tab.w[j]) .* moved
        p.wants_t && (dh += tab.w[j] * dot(moved, half(stage.k, kicked)))
        if j == 1 && n > 1
            p.pending = true
            break
        end
        product!(p, kbar, stage)
        λ .+= field.dz
        if p.wants_t
            change = slope(field)
            dt += change
            dh += tab.c[j] * change
        end
    end
    p.wants_t && move_times!(p, n, t, ends, dt, dh)
    return
end

function remake!(tape::Tape, p::SymplecticPull, steps::Steps, a::Int, b::Int, u, Y, stages)
    value!(p.sum, p.field, u, steps.t[a])
    for n in a:b
        substeps!(u, p.sum, p.field, p.tab, steps.t[n], steps.t[n + 1])
        put_taken!(stages, tape)  # the last derivative is in `p.sum`
    end
    push!(steps.spare, Y)
    return u
end
