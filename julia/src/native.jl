# Functions that the user wrote in Julia, as operations of a graph.
#
# The operation `julia` is `f(u, p, t, networks..., args...)` for each sample or for the whole batch. The operations
# `julia_product` are the products of a cotangent with its Jacobians, which a package of automatic differentiation
# computes (the extensions). In both the operands are t, u, p, then the parameters of the networks, then the
# conditioning tensors; all parameters come as vectors.

"The user's Julia code failed; the message is for the user."
struct FieldFailure <: Exception
    message::String
end

Base.showerror(io::IO, e::FieldFailure) = print(io, e.message)

"Network number `index` was given an input of this size and is not known yet: the caller traces it for this size."
struct UnknownNetwork <: Exception
    index::Int
    size::Vector{Int}
end

Base.showerror(io::IO, e::UnknownNetwork) =
    print(io, "network $(e.index) of the Julia field was given an input of size $(e.size), another than at its trace")

# ---- parameters ---------------------------------------------------------------------------------------------------

"How the function gets its parameters: `structured(s, p)` for a vector `p`."
abstract type Structure end

"An array of this size; a number where it has no dimensions."
struct Plain <: Structure
    size::Vector{Int}
end

structured(s::Plain, p) = isempty(s.size) ? p[begin] : length(s.size) == 1 ? p : reshape(p, s.size...)

"A `ComponentArray` of the structure of a `NamedTuple`; the extension on ComponentArrays defines it."
function component_structure end

"What stands in front of the extensions: the package that each needs."
const PACKAGES = Dict(
    :componentarrays => Base.PkgId(Base.UUID("b0b7db55-cfe3-40fc-9ded-d10e2dbeff66"), "ComponentArrays"),
    :diffeqflux => Base.PkgId(Base.UUID("aae7a2af-3d4f-5e19-a356-7da93b79d9d0"), "DiffEqFlux"),
    :zygote => Base.PkgId(Base.UUID("e88e6eb3-aa80-5325-afca-941959d7151f"), "Zygote"),
    :forwarddiff => Base.PkgId(Base.UUID("f6369f11-7733-5829-9624-2563aa707210"), "ForwardDiff"),
    :reversediff => Base.PkgId(Base.UUID("37e2e3b7-166d-5795-8a7a-e32c996b4267"), "ReverseDiff"),
    :enzyme => Base.PkgId(Base.UUID("7da242da-08ed-463a-9acd-ee780be4f1d9"), "Enzyme"),
)

"Load the package that an extension needs."
function need(name::Symbol)
    id = PACKAGES[name]
    Base.locate_package(id) === nothing && throw(
        FieldFailure("the Julia package $(id.name) is not in Julia's environment. Add it: using Pkg; Pkg.add(\"$(id.name)\")"),
    )
    return Base.require(id)
end

"""
    tree(x)

The structure of parameters as plain data: `Dict("shape" => size)` for a leaf, `Dict("group" => [[name, tree]...])` for
named ones, `nothing` where there are none.
"""
tree(x) = throw(
    FieldFailure("the parameters of a Julia field must be numbers, arrays of numbers, or named tuples and " *
        "ComponentArrays of such, got $(typeof(x))"),
)
tree(::Nothing) = nothing
tree(x::Number) = Dict("shape" => Int[])
tree(x::AbstractArray) = Dict("shape" => collect(Int, size(numbers(x))))
tree(x::NamedTuple) = Dict("group" => [Any[String(k), tree(v)] for (k, v) in pairs(x)])

"The numbers of an array, also of one that only says at run time that it holds numbers."
function numbers(x::AbstractArray)
    eltype(x) <: Number && return x
    try
        return map(v -> convert(Float64, v), collect(x))
    catch
        throw(FieldFailure("the parameters of a Julia field must be numbers, got an array of $(eltype(x))"))
    end
end

"The numbers in a structure as one vector, in ComponentArrays' order."
flatten!(out, ::Nothing) = out
flatten!(out, x::Number) = push!(out, x)
flatten!(out, x::AbstractArray) = append!(out, vec(numbers(x)))
flatten!(out, x::NamedTuple) = (foreach(v -> flatten!(out, v), values(x)); out)

"Zeros of the structure that `tree` describes."
zeros_of(node) = haskey(node, "shape") ?
    (isempty(node["shape"]) ? 0.0 : zeros(Int.(node["shape"])...)) :
    NamedTuple(Symbol(name) => zeros_of(inner) for (name, inner) in node["group"])

function Structure(node)
    node === nothing && return Plain([0])
    haskey(node, "shape") && return Plain(Int.(node["shape"]))
    need(:componentarrays)
    return Base.invokelatest(component_structure, zeros_of(node))
end

# ---- what the user gives --------------------------------------------------------------------------------------------

"A Lux layer as a function `f(u, p, t)`; its states are those of testing."
struct LuxFunction{M,S}
    model::M
    states::S
end

(f::LuxFunction)(u, p, t) = first(f.model(u, p, f.states))

"""
A registered function.

`vjp` is the package that differentiates it; `:auto` becomes the first of `candidates` that does.
"""
mutable struct JuliaFunction
    f::Any
    structure::Structure
    inplace::Bool
    batched::Bool
    vjp::Symbol
    name::String
    initial::Any          # parameters that came with what the user gave; `nothing` where there are none
    u0::Any               # and the initial state and the span of a problem
    tspan::Any
end

const FUNCTIONS = JuliaFunction[]

const CODE = "JuliaField"  # where Julia's messages say that the user's text is

const VALUES = Dict{String,Any}()
const MODULES = Module[]  # held: the types in a module live no longer than the module

"The value of Julia code, in a module of its own; of equal code it is one value, so that it is compiled once."
function run_code(text::AbstractString)
    try
        return get!(VALUES, text) do
            push!(MODULES, Module(:JuliaField))
            include_string(last(MODULES), text, CODE)
        end
    catch error
        error isa LoadError && (error = error.error)
        throw(FieldFailure("the Julia code of the field cannot be used: $(told(error))"))
    end
end

"What an error says, in its first lines."
function told(error)
    lines = split(strip(sprint(showerror, error)), '\n')
    return join(lines[1:min(end, 6)], '\n')
end

arities(f) = unique!([m.nargs - 1 for m in methods(f) if !m.isva])

"""
    define(source, inplace, batched, vjp, networks, seed) -> Int

Register what the user gave: Julia code, a function `f(u, p, t)` or `f!(du, u, p, t)`, a Lux layer, or an ODE problem or
function. `inplace` and `batched` are -1 where the user does not say; `networks` is the number of networks that the
function takes; a Lux layer's parameters are drawn with `seed`. Returns the number of the function.
"""
function define(source, inplace::Int, batched::Int, vjp::AbstractString, networks::Int, seed::Int)
    f = source isa AbstractString ? run_code(source) : source
    name = source isa AbstractString ? CODE : string(nameof(typeof(f)))
    return Base.invokelatest(define_function, f, inplace, batched, Symbol(vjp), networks, name, seed)
end

function define_function(f, inplace, batched, vjp, networks, name, seed)
    if networks > 0 && !(vjp in (:auto, :zygote))
        throw(FieldFailure("only Zygote sees through networks of PyTorch: use vjp=\"zygote\", not \"$vjp\""))
    end
    initial = u0 = tspan = nothing
    if f isa LuxCore.AbstractLuxLayer
        networks == 0 || throw(FieldFailure("a Lux layer takes no networks: give a function (u, p, t, network) -> …"))
        initial, states = LuxCore.setup(Xoshiro(seed), f)
        f, inplace = LuxFunction(f, LuxCore.testmode(states)), 0
        batched = batched == -1 ? 1 : batched
    elseif f isa AbstractODEProblem
        inplace, u0, tspan = Int(isinplace(f)), f.u0, f.tspan
        initial = f.p isa NullParameters ? nothing : f.p
        f = f.f
    end
    if f isa AbstractODEFunction
        inplace = Int(isinplace(f))
            f = unwrapped_f(f.f)
    end
    if ispythons(f)
        throw(FieldFailure(
            "the function is one of Python's, or holds an object of Python's, which Julia cannot call while it solves. " *
            "Write it in Julia, or give pynode.solve a function of torch tensors"
        ))
    end
    if isempty(methods(f))
        throw(FieldFailure("expected a function f(u, p, t) or f!(du, u, p, t), a Lux layer, or an ODE problem, got $(typeof(f))"))
    end
    if inplace == -1
        known = arities(f)
        inplace = !(3 + networks in known) && 4 + networks in known
        if !isempty(known) && !inplace && !(3 + networks in known) && all(<(3 + networks), known)
            throw(FieldFailure("the function takes $(join(sort(known), " or ")) arguments, expected f($(signature(networks))) or f!(du, $(signature(networks)))"))
        end
    end
    push!(FUNCTIONS, JuliaFunction(f, Plain([0]), inplace == 1, batched == 1, vjp, name, initial, u0, tspan))
    return length(FUNCTIONS)
end

"Whether a value is Python's, or a function or structure that holds one, as what SciML makes of Python's functions."
function ispythons(x, depth = 5)
    nameof(typeof(x)) === :Py && return true
    (depth == 0 || x isa Union{Type,Module,AbstractArray}) && return false
    return any(name -> isdefined(x, name) && ispythons(getfield(x, name), depth - 1), fieldnames(typeof(x)))
end

signature(networks) = join(["u", "p", "t", ("network$(k)" for k in 1:networks)...], ", ")

"Facts of a function as JSON: how it is called, and the structure of the parameters that came with it."
function facts(number::Int)
    f = FUNCTIONS[number]
    return JSON.json(Dict(
        "inplace" => f.inplace, "batched" => f.batched, "parameters" => Base.invokelatest(tree, named(f.initial)),
        "u0" => f.u0 === nothing ? nothing : tree(f.u0),
        "tspan" => f.tspan === nothing ? nothing : Float64[f.tspan...],
    ))
end

"Parameters as numbers, arrays and named tuples of them; the extension on ComponentArrays adds its arrays."
named(x) = x
named(x::NamedTuple) = map(named, x)

"The structure of parameters as JSON."
parameter_tree(x) = JSON.json(Base.invokelatest(() -> tree(named(x))))

"Write the numbers of parameters, or of a function's own (`\"parameters\"`, `\"u0\"`), to Python's memory."
function write_numbers(x, address::Int, n::Int)
    out = Base.invokelatest(() -> flatten!(Float64[], named(x)))
    copyto!(wrap(Float64, address, n), out)
    return
end

write_initial(number::Int, what::AbstractString, address::Int, n::Int) =
    write_numbers(what == "u0" ? FUNCTIONS[number].u0 : FUNCTIONS[number].initial, address, n)

"Give a function the structure of its parameters, as `tree` describes it in JSON."
set_structure(number::Int, json::AbstractString) = (FUNCTIONS[number].structure = Structure(JSON.parse(json)); nothing)

"Parameters as the function gets them, from a vector in Python's memory."
component_array(number::Int, address::Int, n::Int) =
    Base.invokelatest(structured, FUNCTIONS[number].structure, copy(wrap(Float64, address, n)))

"The package that differentiates a function; `\"auto\"` before the first product."
vjp_name(number::Int) = string(FUNCTIONS[number].vjp)

# ---- networks ---------------------------------------------------------------------------------------------------------

"""
A traced network for one size of its input. Its kernel is a field of two states, the input and the result, so that
kernels need no other kind of graph: the derivative of the first is zero, that of the second the network's result.
"""
struct Network{T}
    kernel::Any                # `nothing`: not known yet
    index::Int
    batched::Bool
    fields::Dict{Int,TracedField{T,Vector{T}}}
end

Network{T}(number::Int, index::Int, batched::Bool) where {T} =
    Network{T}(number == 0 ? nothing : KERNELS[number], index, batched, Dict{Int,TracedField{T,Vector{T}}}())

"The sizes of a network's input and result without the batch."
network_sizes(n::Network) = [Int[d for d in n.kernel.graph.inputs[i].shape if d isa Int] for i in inputs_of(n.kernel.graph, :z)]

function network_field(n::Network, x)
    given = collect(Int, size(x))
    n.batched && pop!(given)
    n.kernel === nothing && throw(UnknownNetwork(n.index, given))
    inner, _ = network_sizes(n)
    inner == given || throw(UnknownNetwork(n.index, given))
    batch = n.batched ? size(x, ndims(x)) : 1
    return get!(() -> TracedField(Workspace(n.kernel, batch)), n.fields, batch)
end

"""
    apply(network, x, θ)

The network's result for `x`: `(features…, batch)` in a batched function, else `(features…,)`.
"""
function apply(n::Network{T}, x, θ) where {T}
    f = network_field(n, x)
    load!(f, x, θ)
    f.value(zero(T))
    out = last(network_sizes(n))
    return reshape(f.du[(length(x) + 1):end], out..., (n.batched ? (size(x, ndims(x)),) : ())...)
end

function load!(f::TracedField, x, θ)
    bind!(f, θ)
    copyto!(f.u, 1, x, 1, length(x))
    return f
end

function ChainRulesCore.rrule(::typeof(apply), n::Network{T}, x, θ) where {T}
    y = apply(n, x, θ)
    function pullback(cotangent)
        f = load!(network_field(n, x), x, θ)
        fill!(f.v, 0)
        copyto!(f.v, length(x) + 1, unthunk(cotangent), 1, length(y))
        f.product(zero(T))
        dθ = fill!(similar(f.dθ, length(θ)), 0)
        copyto!(dθ, 1, f.dθ, 1, length(f.dθ))
        return NoTangent(), NoTangent(), reshape(f.dz[1:length(x)], size(x)), dθ
    end
    return y, pullback
end

"A network with its parameters, as the user's function calls it."
struct NetworkAt{N,V}
    network::N
    θ::V
end

(n::NetworkAt)(x) = apply(n.network, x, n.θ)

# ---- evaluation -------------------------------------------------------------------------------------------------------

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
    failing(c.definition, first(xs)) do
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

"""
    julia_products!(outs, call, v, operands)

Write the products of the cotangent `v` with the Jacobians in those operands for which `outs` has an array, not `nothing`.
"""
function julia_products!(outs::Tuple, c::JuliaCall, v, xs::Tuple)
    xs = (scalar(xs[1]), Base.tail(xs)...)
    foreach(o -> o === nothing || fill!(o, 0), outs)
    d = c.definition
    failing(d, first(xs); differentiating = true) do
        d.vjp === :auto && choose!(c, outs, v, xs)
        haskey(PACKAGES, d.vjp) && need(d.vjp)
        Base.invokelatest(product_loop!, Val(d.vjp), outs, c.h, c, v, xs)
    end
    return
end

function product_loop!(how, outs, h, c::JuliaCall, v, xs)
    c.definition.batched && return products!(how, outs, h, c, v, xs)
    for b in axes(v, ndims(v))
        parts = ntuple(k -> outs[k] === nothing || !persample(c, k) ? outs[k] : selectdim(outs[k], ndims(outs[k]), b), Val(length(outs)))
        products!(how, parts, h, c, copy(selectdim(v, ndims(v), b)), samples_of(c, xs, b))
    end
    return
end

"""
    products!(Val(package), outs, h, call, v, xs)

Add the products of `v` with the Jacobians of `h` at the operands `xs` to the arrays in `outs`. The extensions define it.
"""
function products! end

"Operands beyond this many numbers are not left to forward differentiation, whose cost grows with them."
const FORWARD = 48

function candidates(c::JuliaCall, xs)
    c.networks > 0 && return (:zygote,)
    n = sum(length, xs) - (c.definition.batched ? 0 : length(xs[2]) ÷ size(xs[2], ndims(xs[2])) * (size(xs[2], ndims(xs[2])) - 1))
    short = !c.definition.batched && n <= FORWARD
    c.definition.inplace && return short ? (:forwarddiff, :reversediff, :enzyme) : (:reversediff, :enzyme, :forwarddiff)
    return short ? (:forwarddiff, :zygote, :reversediff, :enzyme) : (:zygote, :reversediff, :enzyme, :forwarddiff)
end

"Settle on the first package that is there and can differentiate the function here."
function choose!(c::JuliaCall, outs, v, xs)
    errors = String[]
    for how in candidates(c, xs)
        Base.locate_package(PACKAGES[how]) === nothing && continue
        try
            need(how)
            Base.invokelatest(product_loop!, Val(how), map(o -> o === nothing ? o : zero(o), outs), c.h, c, v, xs)
            c.definition.vjp = how
            return
        catch error
            error isa InterruptException && rethrow()
            push!(errors, "$how: $(told(error))")
        end
    end
    isempty(errors) && throw(FieldFailure(
        "none of the Julia packages that differentiate a field is in Julia's environment. Add one: using Pkg; Pkg.add(\"Zygote\")",
    ))
    throw(FieldFailure("the Julia field cannot be differentiated:\n" * join(errors, "\n")))
end

"Run, and say of an error that it came from the user's function."
function failing(run, d::JuliaFunction, t; differentiating = false)
    try
        return run()
    catch error
        (error isa FieldFailure || error isa UnknownNetwork || error isa InterruptException) && rethrow()
        doing = differentiating && d.vjp !== :auto ? "could not be differentiated by $(d.vjp)" : "failed"
        where = line_of(catch_backtrace())
        throw(FieldFailure("the Julia field $doing at t = $t$where: $(told(error))"))
    end
end

function line_of(trace)
    for frame in stacktrace(trace)
        basename(string(frame.file)) == CODE && return " (line $(frame.line) of its code)"
    end
    return ""
end

"Add a cotangent, however a package gives it, to an array."
add_cotangent!(::Nothing, ::Union{Nothing,Number,AbstractArray}) = nothing
add_cotangent!(out::AbstractArray, ::Nothing) = nothing
add_cotangent!(out::AbstractArray, g::Number) = (out .+= g; nothing)
add_cotangent!(out::AbstractArray, g::AbstractArray) = (out .+= reshape(g, size(out)); nothing)

# ---- in a graph -------------------------------------------------------------------------------------------------------

kernels_of(n::Node) = Tuple(parse(Int, k) for k in split(n.attrs["kernels"], ','; keepempty = false))

function call_of!(l::Lowering, n::Node)
    T, number, kernels = l.T, Int(n.attrs["number"]), kernels_of(n)
    return newbuffer!(l, (_, _, _) -> JuliaCall{T}(number, kernels); contiguous = false, alias = false)
end

julia_operand!(l::Lowering, i::Int) =
    istime(l.graph, l.graph.nodes[i]) ? :t : bufsym(materialise!(l, i; contiguous = true))

function lower_op!(l::Lowering, ::Val{:julia}, i, n, into)
    operands = [julia_operand!(l, j) for j in n.inputs]
    call = call_of!(l, n)
    b = destination!(l, n, into)
    emit!(l, :(julia_value!($(bufsym(b)), $(bufsym(call)), ($(operands...),))))
    l.buffer[i] = b
end

# The products at the same operands are computed together, at the first of them.
function lower_op!(l::Lowering, ::Val{:julia_product}, i, n, into)
    haskey(l.buffer, i) && return
    outs = Any[nothing for _ in 2:length(n.inputs)]
    for j in sort!(collect(keys(l.users)))
        m = l.graph.nodes[j]
        (m.op === :julia_product && m.inputs == n.inputs && m.attrs["number"] == n.attrs["number"]) || continue
        haskey(l.given, j) && continue
        l.buffer[j] = j == i ? destination!(l, m, into) : own!(l, m)
        outs[m.attrs["of"] + 1] = bufsym(l.buffer[j])
    end
    v, operands... = [julia_operand!(l, j) for j in n.inputs]
    emit!(l, :(julia_products!(($(outs...),), $(bufsym(call_of!(l, n))), $v, ($(operands...),))))
end

# ---- from Python, outside of a solve --------------------------------------------------------------------------------

"""
    julia_evaluate(ints, n_ints) -> Int

One evaluation, or one product. Integers: number of the function, element type (0 Float32, 1 Float64), the number of
networks and their kernels, the number of operands, and for each the number of its dimensions, these in Julia's order,
and its address; address of the cotangent (0: the value is asked for), and the address of the value, or of the product
with each operand's Jacobian (0: not wanted).

Returns 0; or the number of a network that is not known for the input that it got, whose size then stands at the start
of the integers: number of dimensions, dimensions.
"""
julia_evaluate(ints::Int, n::Int) = guarded(evaluate_now, wrap(Int, ints, n))

const CALLS = Dict{Tuple{Int,DataType,Vector{Int}},Any}()

function evaluate_now(data::Vector{Int})
    r = Reader(data, 0)
    number, T = next!(r), next!(r) == 0 ? Float32 : Float64
    kernels = [next!(r) for _ in 1:next!(r)]
    array(address, size) = address == 0 ? nothing : reshape(wrap(T, address, prod(size)), size)
    sizes = NTuple[]
    xs = ntuple(next!(r)) do _
        push!(sizes, ntuple(_ -> next!(r), next!(r)))
        something(array(next!(r), last(sizes)), zeros(T, last(sizes)))  # an empty tensor has no address
    end
    v = next!(r)
    call = get!(() -> JuliaCall{T}(number, kernels), CALLS, (number, T, kernels))
    try
        if v == 0
            julia_value!(array(next!(r), sizes[2]), call, xs)
        else
            outs = ntuple(k -> array(next!(r), sizes[k]), length(xs))
            julia_products!(outs, call, array(v, sizes[2]), xs)
        end
    catch error
        error isa UnknownNetwork || rethrow()
        data[1:(1 + length(error.size))] .= (length(error.size), error.size...)
        return error.index
    end
    return 0
end
