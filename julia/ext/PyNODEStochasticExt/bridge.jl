# Solves and gradients, as Python asks for them.

function PyNODE.forward_stochastic(r::Reader, x)
    drift, diffusion, batch = next!(r), next!(r), next!(r)
    f = field_for(drift, batch, :joint, HOST; role = :drift)
    g = field_for(diffusion, batch, :joint, HOST; role = :diffusion)
    return forward_typed(f, g, batch, r, x)
end

function forward_typed(f::TracedField{T}, g::TracedField{T}, batch, r::Reader, x) where {T}
    solver, stratonovich, channels, sensitivity, adaptive, max_steps, seed, times, address = (next!(r) for _ in 1:9)
    request = Request(
        STOCHASTIC_SOLVERS[solver], stratonovich == 1, adaptive == 1, (:none, :discrete, :backsolve)[sensitivity + 1],
        max_steps, seed, x[1], x[2], x[3],
    )
    ts = copy(wrap(Time, address, times))
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    for field in (f, g)
        gather!(field.θ, Processor(), [(next!(r), next!(r)) for _ in 1:next!(r)])
    end
    u0 = gather!(zeros(T, length(f.u)), Processor(), [(n, from) for (n, from, _) in states])
    all(v -> allfinite(v, length(v)), (u0, f.θ, g.θ)) || (x[4] = -1; return 0)
    foreach(field -> bind!(field, field.θ), (f, g))
    e = Equation(f, g, states[1][1], channels, batch)
    before = f.counts[1]
    values = zeros(T, length(u0), times)
    summary, path = solve!(values, e, u0, ts, request)
    scatter(Processor(), values, [(n, to) for (n, _, to) in states])
    x[1:5] .= (f.counts[1] - before, summary.accepted, summary.rejected, Int(summary.outcome), summary.reached)
    sensitivity > 0 && summary.outcome === success || return 0
    return enter!(StochasticSolve(e, (copy(f.θ), copy(g.θ)), (f.counts[3], g.counts[3]), request, path, times))
end

"""
The gradient of a kept solve.

Integers, after the device: number of state tensors, then for each its size, the address of its cotangents and the address
for its initial value's cotangent; number of tensors of the drift's `θ` that a cotangent may be wanted for, then for each its size and the address for its
cotangent; the same of the diffusion's. Address 0: a zero cotangent, or one that is not wanted. On return the first float is
the evaluations of the fields and their products.
"""
function PyNODE.pullback_typed(::Processor, s::StochasticSolve{T}, r::Reader, x) where {T}
    e, times = s.equation, s.times
    states = [(next!(r), next!(r), next!(r)) for _ in 1:next!(r)]
    drift = [(next!(r), next!(r)) for _ in 1:next!(r)]
    diffusion = [(next!(r), next!(r)) for _ in 1:next!(r)]
    g = zeros(T, size_of(e), times)
    offset = 0
    for (n, from, _) in states
        from == 0 || n == 0 || (view(g, (offset + 1):(offset + n), :) .= reshape(wrap(T, from, n * times), n, times))
        offset += n
    end
    counted() = sum(e.drift.counts[1:2]) + sum(e.diffusion.counts[1:2])
    before = counted()
    q = stochastic_pullback(s, g)
    scatter(Processor(), reshape(q.λ, :, 1), [(n, to) for (n, _, to) in states])
    scatter(Processor(), reshape(q.θ̄[1], :, 1), drift)
    scatter(Processor(), reshape(q.θ̄[2], :, 1), diffusion)
    x[1] = counted() - before
    return 0
end
