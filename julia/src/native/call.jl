# One evaluation or product, as Python asks for it outside of a solve.

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
