# Training steps, many in one call: the solve, the loss of its states, the gradient, and the optimiser's update.

"""
How tensors are updated: `torch.optim.Adam`, with `decoupled` decay `torch.optim.AdamW`.

Source: D. P. Kingma and J. Ba, "Adam", ICLR 2015; I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization",
ICLR 2019.
"""
struct Adam
    lr::Float64
    decay::Float64
    β1::Float64
    β2::Float64
    ϵ::Float64
    decoupled::Bool
end

"""
The same as `torch.optim.SGD`, with Nesterov's momentum as there.

Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
"""
struct Descent
    lr::Float64
    decay::Float64
    momentum::Float64
    dampening::Float64
    nesterov::Bool
end

"A tensor that is trained: its memory and that of what the optimiser remembers of it, and where its gradient is found."
struct Trained{T,R}
    x::Vector{T}
    first::Vector{T}   # moments
    second::Vector{T}
    gradient::Vector{T}
    count::Vector{Int} # of its updates
    rule::R
    sign::Int          # -1 where the loss is to grow
    # Which parts its gradient is the sum of: of the cotangent of the state (1), of the field's `θ` (2) or of the loss's
    # (3), behind so many numbers.
    parts::Vector{Pair{Int,Int}}
    optional::Bool     # whether a gradient of zeros is none
end

"Step number `n` of a tensor; `g` is the gradient, which it may change."
function update!(t::Trained{T}, r::Adam, n::Int) where {T}
    x, g, m, v = t.x, t.gradient, t.first, t.second
    decay, keep = T(r.decay), r.decoupled ? T(1 - r.lr * r.decay) : one(T)
    β1, β2, ϵ = T(1 - r.β1), T(r.β2), T(r.ϵ)
    step, root = T(r.lr / (1 - r.β1^n)), T(sqrt(1 - r.β2^n))
    @inbounds @simd for i in eachindex(x, g, m, v)
        gi = r.decoupled ? g[i] : g[i] + decay * x[i]
        m[i] += β1 * (gi - m[i])
        v[i] = β2 * v[i] + T(1 - r.β2) * gi^2
        x[i] = keep * x[i] - step * (m[i] / (sqrt(v[i]) / root + ϵ))
    end
    return
end

function update!(t::Trained{T}, r::Descent, n::Int) where {T}
    x, g, m = t.x, t.gradient, t.first
    lr, decay, momentum, new = T(r.lr), T(r.decay), T(r.momentum), n == 1 ? one(T) : T(1 - r.dampening)
    @inbounds @simd for i in eachindex(x, g)
        gi = g[i] + decay * x[i]
        if !iszero(momentum)
            m[i] = (n == 1 ? zero(T) : momentum * m[i]) + new * gi
            gi = r.nesterov ? gi + momentum * m[i] : m[i]
        end
        x[i] -= lr * gi
    end
    return
end

"Update a tensor by the cotangents of the solve's inputs and of what the loss reads."
function update!(t::Trained{T}, c::Cotangents{T}, of_loss) where {T}
    fill!(t.gradient, zero(T))
    for (of, offset) in t.parts
        t.gradient .+= view((c.u0, c.θ, of_loss)[of], (offset + 1):(offset + length(t.x)))
    end
    t.optional && all(iszero, t.gradient) && return
    t.gradient .*= t.sign
    t.count[1] += 1
    update!(t, t.rule, t.count[1])
    return
end

"Numbers that the call gives by their address, after their number."
numbers(::Type{T}, r::Reader) where {T} = (n = next!(r); wrap(T, next!(r), n))

function read_trained(::Type{T}, r::Reader) where {T}
    isadam, n, x, first, second, count, rule, optional = (next!(r) for _ in 1:8)
    parts = [next!(r) => next!(r) for _ in 1:next!(r)]
    p = wrap(Float64, rule, 7)
    how = isadam == 1 ? Adam(p[1:5]..., p[6] == 1) : Descent(p[1:4]..., p[5] == 1)
    memory(address) = address == 0 ? T[] : wrap(T, address, n)
    return Trained(
        memory(x), memory(first), memory(second), zeros(T, n), wrap(Int, count, 1), how, p[7] == 1 ? -1 : 1, parts,
        optional == 1,
    )
end

"""
    train(ints, n_ints, floats) -> Int

Training steps by the discrete adjoint, on the processor.

Integers: kernel, solver, batch, number of times, adaptive, max_steps, bytes of memory for the steps, address of the times;
kernel of the loss, a graph whose first state is the solve's states at all times and whose last number is the loss; number
of steps and the address of their losses, of the state's type; size and address of the state; number of tensors of `θ`,
then for each its size and address, and the same of the loss's; number of tensors that are trained, then for each: whether
by Adam, its size, the addresses of its numbers and of two moments (0: none), that of the count of its updates, that of
seven floats (lr, weight decay, then β₁, β₂, ϵ, whether the decay is decoupled, or momentum, dampening, whether Nesterov's,
0; then whether to maximize), whether a gradient of zeros is none, and the number of `Trained`'s parts, each two integers.
Floats: rtol, atol, dt; on return evaluations, of the products too, steps done, the outcome of the last solve, the time
that it reached. Outcome -1: the state or what the field or the loss reads is not finite; -2: the loss is not.
"""
function train(ints::Int, n_ints::Int, floats::Int)
    r = Reader(wrap(Int, ints, n_ints), 0)
    kernel, solver, batch, times, adaptive, max_steps, memory = (next!(r) for _ in 1:7)
    x = wrap(Float64, floats, 8)
    ts = copy(wrap(Time, next!(r), times))
    field, loss = field_for(kernel, batch, :joint, HOST), field_for(next!(r), times, :joint, HOST)
    options = Options(;
        solver = SOLVER_NAMES[solver], rtol = x[1], atol = x[2], dt = x[3], adaptive = adaptive == 1, max_steps, memory,
        keep = :stages, wants_t = false,
    )
    x[1:5] .= 0
    Base.invokelatest(train_typed, field, loss, r, x, ts, options)
    return 0
end

function train_typed(field::TracedField{T}, loss::TracedField{T}, r::Reader, x, ts, options::Options) where {T}
    losses = numbers(T, r)
    from, parts = numbers(T, r), () -> [numbers(T, r) for _ in 1:next!(r)]
    of_field, of_loss = parts(), parts()
    trained = Trained{T}[read_trained(T, r) for _ in 1:next!(r)]
    u0, values, g = similar(field.u), (similar(field.u, length(field.u), length(ts)) for _ in 1:2)...
    state, rates, seed = (fill!(similar(loss.u), 0) for _ in 1:3)
    seed[end] = 1
    before = field.counts[1:2]
    for n in eachindex(losses)
        copyto!(u0, from)
        foreach(((f, of),) -> bind_numbers!(f, of), ((field, of_field), (loss, of_loss)))
        all(v -> allfinite(v, length(v)), (u0, field.θ, loss.θ)) || (x[4] = -1; break)
        summary, solved = integrate!(values, field, u0, ts, field.θ, options)
        x[4:5] .= (Int(summary.outcome), summary.reached)
        if summary.outcome === success
            copyto!(state, 1, values, 1, length(values))
            value!(rates, loss, state, zero(Time))
            losses[n] = rates[end]
            if isfinite(losses[n])
                vjp!(loss, seed, state, zero(Time))
                copyto!(g, 1, loss.dz, 1, length(g))
                c = pull_back(solved, g; wants_t = false)
                foreach(t -> update!(t, c, loss.dθ), trained)
                x[3] = n
            else
                x[4] = -2
            end
        end
        give_back!(solved)
        x[3] == n || break
    end
    x[1:2] .= field.counts[1:2] .- before
    return
end

"Bind `θ`, the numbers of tensors one after the other."
function bind_numbers!(f::TracedField, tensors)
    offset = 0
    for x in tensors
        copyto!(f.θ, offset + 1, x, 1, length(x))
        offset += length(x)
    end
    return bind!(f, f.θ)
end
