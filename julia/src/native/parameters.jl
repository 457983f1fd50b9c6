# The parameters of a function: one vector here, the structure that the function expects there.

"How the function gets its parameters: `structured(s, p)` for a vector `p`."
abstract type Structure end

"An array of this size; a number where it has no dimensions."
struct Plain <: Structure
    size::Vector{Int}
end

structured(s::Plain, p) = isempty(s.size) ? p[begin] : length(s.size) == 1 ? p : reshape(p, s.size...)

"A `ComponentArray` of the structure of a `NamedTuple`; the extension on ComponentArrays defines it."
function component_structure end

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
