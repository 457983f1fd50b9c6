# Functions that the user wrote in Julia, as operations of a graph.
#
# The operation `julia` is `f(u, p, t, networks..., args...)` for each sample or for the whole batch. The operations
# `julia_product` are the products of a cotangent with its Jacobians, which a package of automatic differentiation
# computes (the extensions). In both the operands are t, u, p, then the parameters of the networks, then the
# conditioning tensors; all parameters come as vectors.

"The user's function of plain operands: `h(t, u, p, θs..., args...)`."
struct Operands{F,S,N<:Tuple}
    f::F
    structure::S
    networks::N
    inplace::Bool
end

function (h::Operands)(t, u, p, rest...)
    given = arguments(h, p, t, rest)
    h.inplace || return h.f(u, given...)
    # Filled first: an entry that the function leaves out is zero.
    du = fill!(similar(u, promoted(t, u, p, rest...), size(u)), 0)
    h.f(du, u, given...)
    return du
end

"Write the value of a function that works in place."
evaluate!(h::Operands, du, t, u, p, rest...) = (h.f(du, u, arguments(h, p, t, rest)...); nothing)

function arguments(h::Operands{F,S,N}, p, t, rest) where {F,S,N}
    k = fieldcount(N)
    networks = ntuple(i -> NetworkAt(h.networks[i], rest[i]), Val(k))
    return (structured(h.structure, p), t, networks..., rest[(k + 1):end]...)
end

element(x::Number) = typeof(x)
element(x::AbstractArray) = eltype(x)
promoted(xs...) = promote_type(map(element, xs)...)

"A function with what it needs in one program: its networks, and what the package of its derivatives keeps."
struct JuliaCall{T}
    definition::JuliaFunction
    h::Any
    networks::Int
    memory::Dict{Symbol,Any}
end

function JuliaCall{T}(number::Int, kernels) where {T}
    d = FUNCTIONS[number]
    networks = Tuple(Network{T}(Int(k), i, d.batched) for (i, k) in enumerate(kernels))
    return JuliaCall{T}(d, Operands(d.f, d.structure, networks, d.inplace), length(kernels), Dict{Symbol,Any}())
end

"Whether an operand belongs to each sample: the state, and what comes after the parameters of the networks."
persample(c::JuliaCall, k::Int) = k == 2 || k > 3 + c.networks

"One sample of an operand, as an array of its own."
sample(c::JuliaCall, x, k, b) = persample(c, k) ? copy(selectdim(x, ndims(x), b)) : x

function samples_of(c::JuliaCall, xs, b)
    return ntuple(k -> k == 1 ? xs[1] : sample(c, xs[k], k, b), Val(length(xs)))
end

scalar(t::Number) = t
scalar(t::AbstractArray) = t[begin]

"""
    julia_value!(out, call, operands)

Write the value of the user's function at the operands `(t, u, p, …)`; `u` and `out` are `(features…, batch)`.
"""
function julia_value!(out, c::JuliaCall, xs::Tuple)
    xs = (scalar(xs[1]), Base.tail(xs)...)
    failing(c, xs) do
        Base.invokelatest(value_loop!, out, c.h, c, xs)
    end
    return
end

function value_loop!(out, h, c::JuliaCall, xs)
    if c.definition.batched
        copyto!(out, checked(c, h(xs...), size(out)))
    else
        for b in axes(out, ndims(out))
            part = selectdim(out, ndims(out), b)
            copyto!(part, checked(c, h(samples_of(c, xs, b)...), size(part)))
        end
    end
    return
end

function checked(c::JuliaCall, y, expected)
    y isa AbstractArray && size(y) == expected && return y
    got = y isa AbstractArray ? "size $(size(y))" : string(typeof(y))
    what = c.definition.batched ? "the state, (features…, batch)" : "the state of one sample"
    hint = c.definition.batched ? "" : ". It gets one sample at a time; with batched=True it gets the whole batch"
    throw(FieldFailure("the Julia field must return dz/dt of the size of $what: expected size $expected, got $got$hint"))
end

"Run, and say of an error that it came from the user's function."
function failing(run, c::JuliaCall, xs::Tuple; differentiating = false)
    try
        return run()
    catch error
        error isa Union{FieldFailure,UnknownNetwork,Interrupted} && rethrow()
        wrong = miscounted(c.definition, c.networks, length(xs) - 3 - c.networks)
        wrong === nothing || throw(FieldFailure(wrong))
        doing = differentiating && c.definition.vjp !== :auto ? "could not be differentiated by $(c.definition.vjp)" : "failed"
        where = line_of(catch_backtrace())
        throw(FieldFailure("the Julia field $doing at t = $(first(xs))$where: $(told(error))"))
    end
end

"What to say of a function that takes another number of arguments than it is given; `nothing` of another one."
function miscounted(d::JuliaFunction, networks::Int, args::Int)
    known, given = arities(d.f), 3 + networks + args
    (any(m -> m.isva, methods(d.f)) || d.inplace + given in known) && return nothing
    form(inplace) = (inplace ? "f!(du, " : "f(") * signature(networks, args) * ")"
    wrong = "the function takes $(join(sort(known), " or ")) arguments, and is called as $(form(d.inplace))"
    !d.inplace + given in known || return wrong
    return "$wrong. If it is of the form $(form(!d.inplace)), make it a JuliaField with inplace=" * (d.inplace ? "False" : "True")
end

function line_of(trace)
    for frame in stacktrace(trace)
        basename(string(frame.file)) == CODE && return " (line $(frame.line) of its code)"
    end
    return ""
end
