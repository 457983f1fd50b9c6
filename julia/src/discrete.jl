# The discrete adjoint: the exact transpose of the accepted steps of an explicit Runge–Kutta method.
#
# A step is Y_i = u + h Σ_j a_ij k_j, k_i = f(t + c_i h, Y_i), u⁺ = u + h Σ_i b_i k_i. Backwards, stage by stage:
# k̄_i = h b_i λ + Σ_j h a_ji Ȳ_j and Ȳ_i = (∂f/∂u)ᵀ k̄_i, with λ the cotangent of u⁺. Step sizes are held.

"The cotangents of a solve's inputs."
struct Cotangents{T,V<:AbstractVector{T}}
    u0::V
    θ::V          # conditioning tensors, then parameters
    ts::Vector{T}
end

"What the pullback of one step works with."
struct StageBuffers{T,V<:AbstractVector{T}}
    k::Vector{V}
    kbar::Vector{V}
    active::Vector{Bool}
    Y::V
    ubar::V
    sum::V
    w::Vector{T}
    dw::Vector{T}
end

function StageBuffers(like::V, s::Int) where {T,V<:AbstractVector{T}}
    make() = fill!(similar(like), zero(T))
    return StageBuffers{T,V}(
        [make() for _ in 1:s], [make() for _ in 1:s], fill(false, s), make(), make(), make(), zeros(T, s), zeros(T, s),
    )
end

"`y = u + h Σ_j a_j k_j` over the first `m` stages."
function combine!(y, u, h, a, k, m)
    u === nothing ? fill!(y, 0) : copyto!(y, u)
    for j in 1:m
        iszero(a[j]) || (α = h * a[j]; y .+= α .* k[j])
    end
    return y
end

function add!(b::StageBuffers, j, α, x)
    if b.active[j]
        b.kbar[j] .+= α .* x
    else
        b.kbar[j] .= α .* x
        b.active[j] = true
    end
    return nothing
end

"""
    discrete_pullback(forward, g; wants_t = true) -> Cotangents

The exact gradient of the numerical solution. `g` is `(state, time)`: the cotangents of `forward`'s values.
"""
function discrete_pullback(fw::Forward{T,V}, g; wants_t::Bool = true) where {T,V}
    field, solution, ts = rebind!(fw.field, fw.θ), fw.solution, fw.ts
    tab = tableau(fw.options.solver, T)
    λ = fill!(similar(solution.u[1]), zero(T))
    b = StageBuffers(λ, tab.s)
    out = Cotangents{T,V}(λ, fill!(similar(field.dθ), zero(T)), zeros(T, length(ts)))
    lands = lands_on_times(fw.options)
    steps = length(solution.t) - 1
    save, stop, shift = length(ts), length(ts), zero(T)
    pending = false  # whether b.kbar[1] still waits for its product, at the start of the step just done
    for n in steps:-1:1
        t, h = solution.t[n], solution.t[n + 1] - solution.t[n]
        u = solution.u[n]
        dt, dh = zero(T), zero(T)
        # The first stage of the later step is the last one of this step.
        if pending
            b.kbar[1], b.kbar[tab.s] = b.kbar[tab.s], b.kbar[1]
        end
        fill!(b.active, false)
        b.active[tab.s] = pending
        fill!(b.ubar, 0)
        first_save = save
        while first_save > 1 && after(ts[first_save], t, h)
            first_save -= 1
        end
        interpolates = any(i -> ts[i] != solution.t[n + 1], (first_save + 1):save)
        stages!(b, fw, tab, n, t, h, u, interpolates || wants_t)
        for i in save:-1:(first_save + 1)
            gi = view(g, :, i)
            if ts[i] == solution.t[n + 1]
                λ .+= gi
                continue
            end
            θ = (ts[i] - t) / h
            weights!(b.w, b.dw, tab, θ)
            b.ubar .+= gi
            for j in 1:(tab.s)
                iszero(b.w[j]) || add!(b, j, h * b.w[j], gi)
            end
            if wants_t
                slope = dot(gi, combine!(b.sum, nothing, one(T), b.dw, b.k, tab.s))
                out.ts[i] += slope
                dt -= slope
                dh += dot(gi, combine!(b.sum, nothing, one(T), b.w, b.k, tab.s)) - θ * slope
            end
        end
        save = first_save
        last_stage = tab.s
        if tab.fsal
            if b.active[tab.s]
                product_at!(b, field, tab.s, solution.u[n + 1], solution.t[n + 1], out)
                λ .+= field.dz
                wants_t && (dt += field.dt[1]; dh += field.dt[1])
            end
            last_stage -= 1
        end
        b.ubar .+= λ
        for j in 1:last_stage
            iszero(tab.b[j]) || add!(b, j, h * tab.b[j], λ)
        end
        wants_t && (dh += dot(λ, combine!(b.sum, nothing, one(T), tab.b, b.k, last_stage)))
        for j in last_stage:-1:2
            b.active[j] || continue
            row = view(tab.A, j, :)
            product_at!(b, field, j, combine!(b.Y, u, h, row, b.k, j - 1), t + tab.c[j] * h, out)
            Ybar = field.dz
            b.ubar .+= Ybar
            for l in 1:(j - 1)
                iszero(row[l]) || add!(b, l, h * row[l], Ybar)
            end
            if wants_t
                dt += field.dt[1]
                dh += tab.c[j] * field.dt[1] + dot(Ybar, combine!(b.sum, nothing, one(T), row, b.k, j - 1))
            end
        end
        pending = tab.fsal && b.active[1]
        if !pending && b.active[1]
            product_at!(b, field, 1, u, t, out)
            b.ubar .+= field.dz
            dt += field.dt[1]
        end
        λ .= b.ubar
        if wants_t
            if solution.t[n + 1] == ts[stop]  # this step was cut to land on ts[stop]
                out.ts[stop] += dh
                shift -= dh
            end
            shift += dt
            start = lands ? stop - 1 : 1
            if start >= 1 && t == ts[start]
                out.ts[start] += shift
                shift, stop = zero(T), start
            end
        end
    end
    if pending
        product_at!(b, field, 1, solution.u[1], solution.t[1], out)
        λ .+= field.dz
        wants_t && (out.ts[1] += field.dt[1])
    end
    λ .+= view(g, :, 1)
    return out
end

"Whether time `τ` lies behind `t` in the direction of `h`."
after(τ, t, h) = h > 0 ? τ > t : τ < t

"The stages of a step: those that the solution stored, or computed again."
function stages!(b::StageBuffers, fw::Forward, tab::Tableau, n, t, h, u, all_stages)
    if tab.stored
        for j in 1:(tab.s)
            b.k[j] = fw.solution.k[n + 1][j]
        end
        return
    end
    field = fw.field
    for j in 1:(all_stages || !tab.fsal ? tab.s : tab.s - 1)
        value!(b.k[j], field, combine!(b.Y, u, h, view(tab.A, j, :), b.k, j - 1), t + tab.c[j] * h)
    end
    return
end

"The product of stage `j`'s cotangent with the field's Jacobians, added to the cotangent of `θ`."
function product_at!(b::StageBuffers, field::TracedField, j, Y, t, out)
    vjp!(field, b.kbar[j], Y, t)
    out.θ .+= field.dθ
    return
end
