# What the user gives: Julia code, a function, a Lux layer or a problem, registered under a number.

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
            Core.eval(last(MODULES), :(exit(_...) = error("it calls exit(), which would end Python")))
            include_string(last(MODULES), text, CODE)
        end
    catch error
        error isa LoadError && (error = error.error)
        throw(FieldFailure("the Julia code of the field cannot be used: $(told(error))"))
    end
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

signature(networks, args = 0) =
    join(["u", "p", "t", ("network$(k)" for k in 1:networks)..., ("arg$(k)" for k in 1:args)...], ", ")

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
